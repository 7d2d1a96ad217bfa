//! The hash slot of a key: the CRC16 (XMODEM) of its hash tag, modulo 16,384 (Redis Cluster specification).

/// Number of hash slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// A hash slot of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HashSlot(u16);

impl HashSlot {
    /// `None` if the number is not below [`SLOTS`].
    pub(super) const fn new(number: u16) -> Option<Self> {
        if number < SLOTS { Some(Self(number)) } else { None }
    }

    /// The slot of a key.
    pub(super) fn of(key: &str) -> Self {
        let crc = hash_tag(key).bytes().fold(0, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                let shifted = crc << 1;
                if crc & 0x8000 == 0 { shifted } else { shifted ^ 0x1021 }
            })
        });
        Self(crc % SLOTS)
    }

    /// The number of the slot, as an index.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The text between the first `{` and the next `}`. The whole key if there is no such text or it is empty.
fn hash_tag(key: &str) -> &str {
    key.split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_match_the_cluster_specification() {
        // The check value of CRC16/XMODEM.
        assert_eq!(HashSlot::of("123456789"), HashSlot(0x31c3 % SLOTS));
        assert_eq!(HashSlot::of("{user1000}.following"), HashSlot::of("{user1000}.followers"));
        assert_eq!(HashSlot::of("foo{}{bar}"), HashSlot(8363));
        assert_eq!(HashSlot::of("foo{{bar}}zap"), HashSlot::of("{bar"));
        assert_eq!(HashSlot::of("{cb:7}:items:x"), HashSlot::of("cb:7"));
    }
}
