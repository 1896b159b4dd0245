//! In which repositories something must be before it counts as stored.

/// The repositories that must have an object. Pure: names and who has it go in, yes or no comes out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum RequiredCopies {
    /// Any one of the configured repositories; the others are filled from it.
    #[default]
    Any,
    /// Every configured repository.
    All,
    /// At least `count` of the named repositories. `count` is between 1 and their number.
    Of {
        /// The names in the configuration.
        repositories: Vec<String>,
        /// How many of them.
        count: usize,
    },
}

impl RequiredCopies {
    /// Whether enough of `all` repositories have it.
    #[must_use]
    pub fn are_met<'a>(&self, all: impl IntoIterator<Item = &'a str>, has: impl Fn(&str) -> bool) -> bool {
        let mut all = all.into_iter();
        match self {
            RequiredCopies::Any => all.any(has),
            RequiredCopies::All => all.all(has),
            RequiredCopies::Of { repositories, count } => {
                let counted = all.filter(|name| repositories.iter().any(|wanted| wanted == name) && has(name)).count();
                counted >= *count
            }
        }
    }

    /// Up to where enough repositories have a log of which each has everything before its own position: the position
    /// `nth` is that of the repository `nth` of `all`. `None` if no position is enough.
    #[must_use]
    pub fn common_position<P: Copy + Ord>(&self, all: &[(&str, P)]) -> Option<P> {
        let mut positions: Vec<P> = all.iter().map(|(_, position)| *position).collect();
        positions.sort_unstable();
        let names = || all.iter().map(|(name, _)| *name);
        let reaches = |position: P| {
            self.are_met(names(), |name| all.iter().any(|(other, has)| *other == name && *has >= position))
        };
        positions.into_iter().rev().find(|position| reaches(*position))
    }
}

#[cfg(test)]
mod tests {
    use super::RequiredCopies;
    use proptest::prelude::*;

    fn policies() -> [RequiredCopies; 5] {
        let of = |repositories: &[&str], count| RequiredCopies::Of {
            repositories: repositories.iter().map(|name| (*name).to_owned()).collect(),
            count,
        };
        [RequiredCopies::Any, RequiredCopies::All, of(&["a"], 1), of(&["a", "b"], 1), of(&["b", "c"], 2)]
    }

    #[test]
    fn enough_is_what_the_policy_says() {
        let met = |has: &[&str]| policies().map(|policy| policy.are_met(["a", "b", "c"], |name| has.contains(&name)));
        assert_eq!(met(&[]), [false; 5]);
        assert_eq!(met(&["a"]), [true, false, true, true, false]);
        assert_eq!(met(&["c"]), [true, false, false, false, false]);
        assert_eq!(met(&["b", "c"]), [true, false, false, true, true]);
        assert_eq!(met(&["a", "b", "c"]), [true; 5]);
    }

    #[test]
    fn a_repository_that_is_not_configured_any_more_is_never_there() {
        let gone = RequiredCopies::Of { repositories: vec!["gone".into()], count: 1 };
        assert!(!gone.are_met(["a"], |_| true));
        assert_eq!(gone.common_position(&[("a", 5)]), None);
    }

    proptest! {
        /// The same answer as asking at every position.
        #[test]
        fn the_common_position_is_the_last_that_enough_have(a in 0_u8..9, b in 0_u8..9, c in 0_u8..9) {
            let all = [("a", a), ("b", b), ("c", c)];
            for policy in policies() {
                let has = |position| policy.are_met(["a", "b", "c"], |name| {
                    all.iter().any(|(other, has)| *other == name && *has >= position)
                });
                let naive = (0_u8..9).rev().find(|position| has(*position)).unwrap();
                prop_assert_eq!(policy.common_position(&all).unwrap(), naive);
            }
        }
    }
}
