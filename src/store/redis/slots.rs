//! Which of a cluster's 16,384 slots a key is in: its hash tag's CRC16 (XMODEM).

/// How many slots a cluster has.
pub(super) const SLOTS: u16 = 16_384;

/// A slot of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u16);

impl Slot {
    /// The slot of this number, if there is one.
    pub(super) const fn new(number: u16) -> Option<Self> {
        if number < SLOTS { Some(Self(number)) } else { None }
    }

    /// The slot that a key is in.
    pub(super) fn of(key: &str) -> Self {
        let crc = hash_tag(key).bytes().fold(0, |crc, byte| {
            (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
                let shifted = crc << 1;
                if crc & 0x8000 == 0 { shifted } else { shifted ^ 0x1021 }
            })
        });
        Self(crc % SLOTS)
    }

    /// Its place in a list of all slots.
    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What is between the first brace and the next closing one, unless it is nothing; else the whole key.
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
    fn the_slot_is_that_of_the_specification() {
        // The check value of CRC16/XMODEM.
        assert_eq!(Slot::of("123456789"), Slot(0x31c3 % SLOTS));
        assert_eq!(Slot::of("{user1000}.following"), Slot::of("{user1000}.followers"));
        assert_eq!(Slot::of("foo{}{bar}"), Slot(8363));
        assert_eq!(Slot::of("foo{{bar}}zap"), Slot::of("{bar"));
        assert_eq!(Slot::of("{cb:7}:items:x"), Slot::of("cb:7"));
    }
}
