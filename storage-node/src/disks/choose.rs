//! Which disk a new block goes to. Pure.

use holdfast_protocol::digest::Digest;

/// A disk in proportion to the room it has, drawn by the digest: disks of any sizes grow full together, and the same
/// block finds the same disk while nothing changes. `None` when none has room for `needed` bytes.
pub(super) fn choose(digest: &Digest, needed: u64, rooms: &[(usize, u64)]) -> Option<usize> {
    let fitting = || rooms.iter().filter(|(_, free)| *free >= needed);
    let total: u128 = fitting().map(|(_, free)| u128::from(*free)).sum();
    let drawn = digest.0.last_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // The digest's end, because its beginning names the bucket of the inventory.
    let mut at = u128::from(drawn).checked_rem(total)?;
    for (disk, free) in fitting() {
        match at.checked_sub(u128::from(*free)) {
            Some(rest) => at = rest,
            None => return Some(*disk),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_fill_in_proportion_to_their_room() {
        let rooms = [(0, 1 << 40), (3, 3 << 40)];
        let mut counts = [0u32; 4];
        for seed in 0..4_000u32 {
            let digest = Digest::of(&seed.to_le_bytes());
            counts[choose(&digest, 1 << 20, &rooms).unwrap()] += 1;
        }
        assert_eq!(counts[0] + counts[3], 4_000);
        assert!((850..1_150).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn a_disk_without_room_is_never_chosen() {
        let digest = Digest::of(b"one");
        assert_eq!(choose(&digest, 10, &[(0, 9), (1, 10)]), Some(1));
        assert_eq!(choose(&digest, 10, &[(0, 9)]), None);
        assert_eq!(choose(&digest, 10, &[]), None);
    }
}
