//! A dataset tree made from a seed, in the shapes that training jobs read: small images, WebDataset tar shards,
//! one large safetensors checkpoint. The same seed gives the same bytes on every machine.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::ProgressBar;

/// A generated file.
#[derive(Debug, Clone)]
pub(crate) struct Generated {
    /// Path below the dataset's root, with `/`.
    pub(crate) name: String,
    /// Its length.
    pub(crate) len: u64,
    /// BLAKE3 of its bytes.
    pub(crate) hash: blake3::Hash,
}

const SHARD_LEN: u64 = 16_000_000;
const PIECE_LEN: usize = 1024 * 1024;

/// Bytes that no compressor shortens and no two files share.
struct Random(blake3::OutputReader);

impl Random {
    fn of(seed: &str) -> Self {
        Self(
            blake3::Hasher::new_derive_key("holdfast demo dataset v1").update(seed.as_bytes()).finalize_xof(),
        )
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        bytes
    }

    /// A number in `from..to`.
    fn between(&mut self, from: u64, to: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        from + u64::from_le_bytes(bytes) % (to - from)
    }
}

/// Writes a file while hashing it.
struct HashingFile {
    file: std::io::BufWriter<std::fs::File>,
    hasher: blake3::Hasher,
    len: u64,
}

impl HashingFile {
    fn create(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let file =
            std::fs::File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file: std::io::BufWriter::new(file), hasher: blake3::Hasher::new(), len: 0 })
    }

    fn finish(mut self, name: String) -> Result<Generated> {
        self.file.flush()?;
        Ok(Generated { name, len: self.len, hash: self.hasher.finalize() })
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Makes about `megabytes` MB below `root`: a tenth in images, four tenths in shards, half in one checkpoint.
pub(crate) fn generate(root: &Path, megabytes: u64, seed: &str, bar: &ProgressBar) -> Result<Vec<Generated>> {
    let total = megabytes * 1_000_000;
    let mut files = Vec::new();
    let mut random = Random::of(seed);
    let mut images = 0;
    while images < total / 10 {
        let len = random.between(20_000, 140_000);
        let name = format!("images/class-{:02}/{:06}.jpg", files.len() % 10, files.len());
        let mut file = HashingFile::create(&root.join(&name))?;
        image(&mut file, &mut random, len)?;
        files.push(file.finish(name)?);
        images += len;
        bar.inc(len);
    }
    for shard in 0..(total * 4 / 10).div_ceil(SHARD_LEN) {
        let name = format!("shards/train-{shard:06}.tar");
        let mut file = HashingFile::create(&root.join(&name))?;
        tar_shard(&mut file, &mut random, shard)?;
        let made = file.finish(name)?;
        bar.inc(made.len);
        files.push(made);
    }
    let name = "checkpoints/model.safetensors".to_owned();
    let mut file = HashingFile::create(&root.join(&name))?;
    safetensors(&mut file, &mut random, total / 2, bar)?;
    files.push(file.finish(name)?);
    Ok(files)
}

/// JPEG's first and last markers around random bytes.
fn image(sink: &mut impl Write, random: &mut Random, len: u64) -> Result<()> {
    let body = random.bytes(usize::try_from(len.saturating_sub(4))?);
    sink.write_all(&[0xff, 0xd8])?;
    sink.write_all(&body)?;
    sink.write_all(&[0xff, 0xd9])?;
    Ok(())
}

/// A WebDataset shard: `NNNNNN.jpg` and `NNNNNN.json` side by side.
fn tar_shard(sink: &mut HashingFile, random: &mut Random, shard: u64) -> Result<()> {
    let mut archive = tar::Builder::new(&mut *sink);
    let mut written = 0;
    let mut sample = 0u64;
    while written < SHARD_LEN {
        let len = random.between(30_000, 220_000);
        let mut picture = Vec::new();
        image(&mut picture, random, len)?;
        let label = format!("{{\"label\": {}, \"shard\": {shard}}}\n", random.between(0, 1000));
        for (extension, bytes) in [("jpg", picture.as_slice()), ("json", label.as_bytes())] {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(1_700_000_000);
            archive.append_data(&mut header, format!("{shard:03}{sample:06}.{extension}"), bytes)?;
            written += 512 + (bytes.len() as u64).next_multiple_of(512);
        }
        sample += 1;
    }
    archive.finish()?;
    Ok(())
}

/// A safetensors file: length of the header, the header in JSON, the tensors one after another.
fn safetensors(sink: &mut HashingFile, random: &mut Random, len: u64, bar: &ProgressBar) -> Result<()> {
    let tensors = 24u64;
    let each = len / tensors / 2 * 2;
    let mut header = serde_json::Map::new();
    for tensor in 0..tensors {
        header.insert(
            format!("model.layers.{tensor}.weight"),
            serde_json::json!({
                "dtype": "BF16",
                "shape": [each / 2],
                "data_offsets": [tensor * each, (tensor + 1) * each],
            }),
        );
    }
    let header = serde_json::to_vec(&header)?;
    sink.write_all(&(header.len() as u64).to_le_bytes())?;
    sink.write_all(&header)?;
    let mut left = tensors * each;
    while left > 0 {
        let piece = usize::try_from(left.min(PIECE_LEN as u64))?;
        sink.write_all(&random.bytes(piece))?;
        left -= piece as u64;
        bar.inc(piece as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_tree() -> Result<()> {
        let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
        let bar = ProgressBar::hidden();
        let first = generate(one.path(), 40, "seed", &bar)?;
        let second = generate(two.path(), 40, "seed", &bar)?;
        assert_eq!(first.len(), second.len());
        assert!(first.iter().zip(&second).all(|(a, b)| a.hash == b.hash && a.name == b.name));
        let other = generate(two.path(), 40, "another seed", &bar)?;
        assert_ne!(first[0].hash, other[0].hash);
        let total: u64 = first.iter().map(|file| file.len).sum();
        assert!((38_000_000..60_000_000).contains(&total), "{total}");
        Ok(())
    }

    #[test]
    fn generated_hashes_are_those_of_the_files() -> Result<()> {
        let dir = tempfile::tempdir()?;
        for file in generate(dir.path(), 20, "seed", &ProgressBar::hidden())? {
            let bytes = std::fs::read(dir.path().join(&file.name))?;
            assert_eq!(blake3::hash(&bytes), file.hash, "{}", file.name);
        }
        Ok(())
    }
}
