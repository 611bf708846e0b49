// Makes unixfs.json: root CIDs by npm `ipfs-unixfs-importer`, an implementation that is not ours.
//
//   npm install && npm run make
//
// The importer hashes with sha2-256 only, so a module hook hands it a switchable hasher instead; nothing else
// of it is changed. Before a single BLAKE3 vector is written, the layout is checked with sha2-256 against the
// CIDs that IPIP-0499 and Kubo's tests publish for the profile `unixfs-v1-2025` (1 MiB chunks, 1,024 links,
// raw leaves, balanced). Those inputs are ChaCha20 keystreams under sha2-256(seed).
//
// Our own inputs are AES-256-CTR keystreams: key = sha2-256(seed), counter block zero.
import { createCipheriv, createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { register } from 'node:module'

const hooks = `
export async function resolve(specifier, context, next) {
  if (specifier === 'multiformats/hashes/sha2' && context.parentURL?.includes('/ipfs-unixfs-importer/')) {
    return { url: 'data:text/javascript,export const sha256 = { digest: (bytes) => globalThis.holdfastHasher(bytes) }', shortCircuit: true }
  }
  return next(specifier, context)
}`
register('data:text/javascript,' + encodeURIComponent(hooks))

const { importFile } = await import('ipfs-unixfs-importer')
const { BlackHoleBlockstore } = await import('blockstore-core')
const { sha256 } = await import('multiformats/hashes/sha2')
const Digest = await import('multiformats/hashes/digest')
const { blake3 } = await import('@noble/hashes/blake3')

const MIB = 1024 * 1024
const keyOf = (seed) => createHash('sha256').update(seed).digest()

function * keystream (algorithm, seed, size) {
  const cipher = createCipheriv(algorithm, keyOf(seed), Buffer.alloc(16))
  const zeros = Buffer.alloc(MIB)
  for (let left = size; left > 0; left -= MIB) {
    yield new Uint8Array(cipher.update(left < MIB ? zeros.subarray(0, left) : zeros))
  }
}

// Blocks of any lengths, as odd parts make them: the chunker passes on what it is given.
const asGiven = async function * (source) { yield * source }

function * cut (seed, lengths) {
  const cipher = createCipheriv('aes-256-ctr', keyOf(seed), Buffer.alloc(16))
  for (const length of lengths) yield new Uint8Array(cipher.update(Buffer.alloc(length)))
}

async function rootOf (content, options = {}) {
  const result = await importFile({ content }, new BlackHoleBlockstore(), { profile: 'unixfs-v1-2025', ...options })
  return result.cid.toString()
}

// 1. The layout, by published CIDs.
globalThis.holdfastHasher = (bytes) => sha256.digest(bytes)
const published = [
  ['hello world', () => [new TextEncoder().encode('hello world')], 'bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e'],
  ['chunk-v1-seed, 1 MiB', () => keystream('chacha20', 'chunk-v1-seed', MIB), 'bafkreiacndfy443ter6qr2tmbbdhadvxxheowwf75s6zehscklu6ezxmta'],
  ['chunk-v1-seed, 1 MiB + 1', () => keystream('chacha20', 'chunk-v1-seed', MIB + 1), 'bafybeigmix7t42i6jacydtquhet7srwvgpizfg7gjbq7627d35mjomtu64'],
  ['v1-2025-seed, 1024 MiB', () => keystream('chacha20', 'v1-2025-seed', 1024 * MIB), 'bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm'],
  ['v1-2025-seed, 1024 MiB + 1', () => keystream('chacha20', 'v1-2025-seed', 1024 * MIB + 1), 'bafybeibdsi225ugbkmpbdohnxioyab6jsqrmkts3twhpvfnzp77xtzpyhe']
]
for (const [name, content, expected] of published) {
  const found = await rootOf(content())
  if (found !== expected) throw new Error(`layout differs from the published one: ${name}: ${found}, expected ${expected}`)
  console.log('layout ok  ', name, found)
}

// 2. The vectors, by BLAKE3.
globalThis.holdfastHasher = (bytes) => Digest.create(0x1e, blake3(bytes))
const SEED = 'holdfast unixfs vectors v1'
const vectors = []
for (const size of [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB, 1024 * MIB, 1025 * MIB + 7]) {
  const cid = await rootOf(keystream('aes-256-ctr', SEED, size))
  vectors.push({ size, cid })
  console.log('vector     ', size, cid)
}

// Block i of an odd object has 1 + (i * 7919) mod `modulus` bytes.
const odd = []
for (const [blocks, modulus] of [[3, 1000], [1024, 1000], [1025, 1000], [2100, 4096], [1024 * 1024 + 1, 1]]) {
  const lengths = (function * () { for (let i = 0; i < blocks; i++) yield 1 + (i * 7919) % modulus })()
  const cid = await rootOf(cut(SEED, lengths), { chunker: asGiven })
  odd.push({ blocks, modulus, cid })
  console.log('odd blocks ', blocks, modulus, cid)
}

const text = {
  about: 'Root CIDs (balanced UnixFS, raw leaves, 1 MiB blocks, 1,024 links a node, BLAKE3-256) made by make.mjs with npm ipfs-unixfs-importer. Input: the AES-256-CTR keystream under key = sha2-256(seed) from counter block zero. In `odd`, block i has 1 + (i * 7919) mod modulus bytes of it.',
  seed: SEED,
  key: keyOf(SEED).toString('hex'),
  vectors,
  odd
}
writeFileSync(new URL('unixfs.json', import.meta.url), JSON.stringify(text, null, 2) + '\n')
