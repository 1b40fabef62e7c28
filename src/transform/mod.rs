//! The user's SQL transforms, planned against the real target.
