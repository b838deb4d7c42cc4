//! pairwise
