//! The core, driven by stories and by chance.

mod sim;
mod stories;
mod story;
