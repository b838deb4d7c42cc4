//! `social-reward demo`.

mod figures;
mod pipeline;
