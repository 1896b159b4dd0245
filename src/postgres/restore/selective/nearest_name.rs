//! The name that a user may have meant.

/// The name that is spelled most like `name`, if any is spelled like it at all.
pub(super) fn nearest_name(name: &str, known: impl Iterator<Item = String>) -> Option<String> {
    let scored = known.map(|known| (strsim::jaro_winkler(name, &known), known));
    let best = scored.max_by(|(one, _), (other, _)| one.total_cmp(other))?;
    (best.0 > 0.8).then_some(best.1)
}
