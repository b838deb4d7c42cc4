//! Scoring the images of a table for their prompts, as `reward score` does: a first look at all, parts that survive a kill, and
//! the table that comes out.

pub mod first_look;
pub mod parts;
pub mod rows;
pub mod table;
