//! triplets
