//! Which flow is the longest, kept while lengths change by one: flows of one length are a list.
//! O(1) per change.

/// No flow: the end of a list.
const NIL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

/// Flows, by a small number each, and how long they are.
#[derive(Default)]
pub struct Lengths {
    /// The first flow of each length from 1.
    heads: Vec<u32>,
    links: Vec<Link>,
    longest: u32,
}

impl Lengths {
    /// A flow's length went from `before` to `after`, one apart.
    pub fn moved(&mut self, flow: u32, before: u32, after: u32) {
        if before > 0 {
            self.unlink(flow, before);
        }
        if after > 0 {
            self.link(flow, after);
        }
        self.longest = self.longest.max(after);
        if self.longest > 0 && self.heads[self.longest as usize - 1] == NIL {
            // It was the only one of that length, and is one shorter now.
            self.longest -= 1;
        }
    }

    fn link(&mut self, flow: u32, len: u32) {
        if self.heads.len() < len as usize {
            self.heads.resize(len as usize, NIL);
        }
        if self.links.len() <= flow as usize {
            self.links.resize(
                flow as usize + 1,
                Link {
                    prev: NIL,
                    next: NIL,
                },
            );
        }
        let next = std::mem::replace(&mut self.heads[len as usize - 1], flow);
        self.links[flow as usize] = Link { prev: NIL, next };
        if next != NIL {
            self.links[next as usize].prev = flow;
        }
    }

    fn unlink(&mut self, flow: u32, len: u32) {
        let Link { prev, next } = self.links[flow as usize];
        match prev {
            NIL => self.heads[len as usize - 1] = next,
            prev => self.links[prev as usize].next = next,
        }
        if next != NIL {
            self.links[next as usize].prev = prev;
        }
    }

    /// The longest flow, and how long it is.
    pub fn longest(&self) -> Option<(u32, u32)> {
        let index = self.longest.checked_sub(1)?;
        Some((self.heads[index as usize], self.longest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_longest_is_that_of_a_plain_list(
            steps in prop::collection::vec((0usize..5, any::<bool>()), 0..300),
        ) {
            let mut plain = [0u32; 5];
            let mut lengths = Lengths::default();
            for (flow, grows) in steps {
                let before = plain[flow];
                let after = if grows { before + 1 } else { before.saturating_sub(1) };
                if before == after {
                    continue;
                }
                plain[flow] = after;
                lengths.moved(flow as u32, before, after);
                let most = *plain.iter().max().unwrap();
                match lengths.longest() {
                    None => prop_assert_eq!(most, 0),
                    Some((flow, len)) => {
                        prop_assert_eq!(len, most);
                        prop_assert_eq!(plain[flow as usize], len);
                    }
                }
            }
        }
    }
}
