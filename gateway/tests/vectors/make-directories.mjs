// Makes directories.json: root CIDs of directories by npm `ipfs-unixfs-importer`, an implementation that is not ours.
//
//   npm install && node make-directories.mjs
//
// As in make.mjs, a module hook hands the importer a switchable hasher; nothing else of it is changed. Directories
// follow the profile `unixfs-v1-2025`: one node up to 256 KiB of block, a HAMT of 256 ways above.
//
// File i of a directory of n files is named by `name` and holds i in decimal, except where said otherwise.
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

const { importer } = await import('ipfs-unixfs-importer')
const { BlackHoleBlockstore } = await import('blockstore-core')
const Digest = await import('multiformats/hashes/digest')
const { blake3 } = await import('@noble/hashes/blake3')

globalThis.holdfastHasher = (bytes) => Digest.create(0x1e, blake3(bytes))
const encoder = new TextEncoder()

async function rootOf (entries) {
  let last
  const options = { profile: 'unixfs-v1-2025', wrapWithDirectory: true }
  for await (const entry of importer(entries, new BlackHoleBlockstore(), options)) last = entry
  return { cid: last.cid.toString(), tree_size: Number(last.size) }
}

const wide = []
for (const n of [1, 2, 100, 4000, 4200, 4500, 5000, 6000, 100000]) {
  const entries = (function * () {
    for (let i = 0; i < n; i++) {
      yield { path: `file-${String(i).padStart(6, '0')}.jpg`, content: [encoder.encode(String(i))] }
    }
  })()
  wide.push({ files: n, ...await rootOf(entries) })
  console.log('wide', wide.at(-1))
}

// Names of several scripts, a tree of some depth, an empty directory, and a file of three blocks.
const tree = {
  'a/x': '1', 'a/y.txt': '22', 'a/b/c/d': '333', 'a-b': '4444', 'a.c': '5', 'empty/': null,
  'straße/日本語.txt': '6', 'emoji-😀': '7', 'zero': '', 'large.bin': 'L'.repeat(2 * 1024 * 1024 + 5)
}
const entries = Object.entries(tree).map(([path, text]) =>
  text === null ? { path: path.slice(0, -1) } : { path, content: [encoder.encode(text)] })
const nested = { files: tree, ...await rootOf(entries) }
nested.files = { ...tree, 'large.bin': { repeat: 'L', times: 2 * 1024 * 1024 + 5 } }
console.log('nested', nested.cid, nested.tree_size)

const text = {
  about: 'Directory CIDs (UnixFS, profile unixfs-v1-2025, BLAKE3-256) made by make-directories.mjs with npm ipfs-unixfs-importer. In `wide`, file i of n is file-%06d.jpg and holds i in decimal. In `nested`, a key ending in / is an empty directory.',
  wide,
  nested
}
writeFileSync(new URL('directories.json', import.meta.url), JSON.stringify(text, null, 2) + '\n')
