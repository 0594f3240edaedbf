//! How many waiters stand before a newcomer, without looking at each flow.
//!
//! For flows of lengths q the sum of min(q, r) is the number of (flow, level) pairs with
//! level <= r and level <= q: one count per level, summed up to r. A Fenwick tree does both in
//! O(log longest flow).

/// Counts, for each level from 1, the flows at least that long.
#[derive(Default)]
pub struct Levels {
    tree: Vec<u32>,
}

impl Levels {
    /// A flow's length went from `before` to `after`, one apart or equal.
    pub fn moved(&mut self, before: u32, after: u32) {
        match after.cmp(&before) {
            std::cmp::Ordering::Greater => self.add(after, 1),
            std::cmp::Ordering::Less => self.add(before, -1),
            std::cmp::Ordering::Equal => {}
        }
    }

    fn add(&mut self, level: u32, by: i32) {
        self.reach(level as usize);
        let mut index = level as usize;
        while index <= self.tree.len() {
            self.tree[index - 1] = self.tree[index - 1].saturating_add_signed(by);
            index += lowest_bit(index);
        }
    }

    /// Doubles until `level` fits. The tree's old root covers all there was, and is the left half
    /// of the new one.
    fn reach(&mut self, level: usize) {
        while self.tree.len() < level {
            let total = self.tree.last().copied().unwrap_or(0);
            let doubled = (self.tree.len() * 2).max(1);
            self.tree.resize(doubled, 0);
            self.tree[doubled - 1] = total;
        }
    }

    /// The sum over all flows of min(length, `level`).
    pub fn up_to(&self, level: u32) -> u32 {
        let mut index = (level as usize).min(self.tree.len());
        let mut sum = 0;
        while index > 0 {
            sum += self.tree[index - 1];
            index -= lowest_bit(index);
        }
        sum
    }
}

fn lowest_bit(index: usize) -> usize {
    index & index.wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_sum_is_that_of_a_plain_list(
            steps in prop::collection::vec((0usize..6, any::<bool>()), 0..200),
            level in 0u32..100,
        ) {
            let mut lengths = [0u32; 6];
            let mut levels = Levels::default();
            for (flow, grows) in steps {
                let before = lengths[flow];
                let after = if grows { before + 1 } else { before.saturating_sub(1) };
                lengths[flow] = after;
                levels.moved(before, after);
            }
            let plain: u32 = lengths.iter().map(|&length| length.min(level)).sum();
            prop_assert_eq!(levels.up_to(level), plain);
        }
    }
}
