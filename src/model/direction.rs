//! Names of pipelines, and of the two that go opposite ways between the same databases.

/// Bytes that the name of a pipeline may have.
pub const PIPELINE_BYTES_MAX: usize = 40;
/// What the name of a pipeline's way back ends with. No pipeline of its own may be called so.
pub const REVERSE: &str = "-reverse";

/// What the way back of a pipeline is called.
pub fn reverse_of(pipeline: &str) -> String {
    format!("{pipeline}{REVERSE}")
}

/// Whether this is the name of a way back.
pub fn is_reverse(pipeline: &str) -> bool {
    pipeline.ends_with(REVERSE)
}

/// The pipeline that goes the other way, whether there is one or not: what it writes is no change of its target's own.
pub fn peer_of(pipeline: &str) -> String {
    pipeline.strip_suffix(REVERSE).map_or_else(|| reverse_of(pipeline), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_is_the_other_ones_peer() {
        assert_eq!((peer_of("shop").as_str(), peer_of("shop-reverse").as_str()), ("shop-reverse", "shop"));
        assert!(is_reverse(&reverse_of("shop")) && !is_reverse("shop"));
    }
}
