//! Scoring the images of a table for their prompts, as `reward score` does. First comes a look at all, then parts that survive a
//! kill, and then the table that comes out.

pub mod first_look;
pub mod parts;
pub mod rows;
pub mod table;
