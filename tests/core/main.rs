//! The core, driven by stories and by chance.

mod pid1;
mod sim;
mod small_worlds;
mod stories;
mod story;
