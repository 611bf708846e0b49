//! Whether one state of a log extends another: what must hold before anybody cosigns the later one.

use tlog_tiles::{Error, Hash, Tile, TileHashReader, TileReader, check_tree, prove_tree};

use super::{TILE_WIDTH, tile_path};

/// Tile height of the C2SP format: 2^8 hashes.
const HEIGHT: u8 = 8;

struct Files<'a>(&'a dyn Fn(&str) -> Option<Vec<u8>>);

impl TileReader for Files<'_> {
    fn height(&self) -> u8 {
        HEIGHT
    }

    fn read_tiles(&self, tiles: &[Tile]) -> Result<Vec<Vec<u8>>, Error> {
        let read = |tile: &Tile| {
            let width = usize::try_from(tile.width()).map_err(|_| Error::InvalidTile)?;
            let level = tile.level().to_string();
            // A tile that was incomplete then may be served complete now.
            let bytes = (self.0)(&tile_path(&level, tile.level_index(), width))
                .or_else(|| (self.0)(&tile_path(&level, tile.level_index(), TILE_WIDTH)))
                .ok_or(Error::InvalidTile)?;
            bytes.get(..width * 32).map(<[u8]>::to_vec).ok_or(Error::InvalidTile)
        };
        tiles.iter().map(read).collect()
    }

    fn save_tiles(&self, _: &[Tile], _: &[Vec<u8>]) {}
}

/// Checks that the log of `new` (size and root) begins with the log of `old`, from the tiles that `read` gives. The
/// tiles are authenticated against the new root, so whoever serves them is not believed.
///
/// # Errors
/// [`ExtensionError`] when it does not, or cannot be shown to.
pub fn check_extension(
    old: (u64, Hash),
    new: (u64, Hash),
    read: &dyn Fn(&str) -> Option<Vec<u8>>,
) -> Result<(), ExtensionError> {
    if old.0 > new.0 {
        return Err(ExtensionError::Shrunk { old: old.0, new: new.0 });
    }
    if old.0 == new.0 {
        return if old.1 == new.1 { Ok(()) } else { Err(ExtensionError::Forked { size: old.0 }) };
    }
    if old.0 == 0 {
        return Ok(());
    }
    let files = Files(read);
    let reader = TileHashReader::new(new.0, new.1, &files);
    let proof = prove_tree(new.0, old.0, &reader).map_err(|_| ExtensionError::Tiles { size: new.0 })?;
    check_tree(&proof, new.0, new.1, old.0, old.1).map_err(|_| ExtensionError::Forked { size: old.0 })
}

/// Why one state of a log does not extend another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtensionError {
    /// Entries are gone.
    #[error("the log had {old} entries and has {new} now")]
    Shrunk {
        /// Entries then.
        old: u64,
        /// Entries now.
        new: u64,
    },
    /// The first entries are others.
    #[error("the first {size} entries of the log are not those that were seen before")]
    Forked {
        /// How many.
        size: u64,
    },
    /// The tiles are missing or are not those of the checkpoint.
    #[error("the tiles of the log of {size} entries are missing or do not belong to its checkpoint")]
    Tiles {
        /// Entries now.
        size: u64,
    },
}

impl ExtensionError {
    /// Whether the log may simply not be written out yet.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Tiles { .. })
    }
}
