//! Options whose values are one of a fixed list of names.

use clap::builder::{PossibleValuesParser, TypedValueParser};

/// Parses one of these by its name. The error lists all names.
pub(in crate::cli) fn named_value_parser<K, const N: usize>(
    all: [K; N],
    name: fn(K) -> &'static str,
) -> impl TypedValueParser<Value = K>
where
    K: Copy + Send + Sync + 'static,
{
    let known = move |given: String| all.into_iter().find(|one| name(*one) == given).ok_or("no such kind of event");
    PossibleValuesParser::new(all.map(name)).try_map(known)
}
