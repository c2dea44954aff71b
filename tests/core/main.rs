//! The core, driven by stories.

mod story;
mod stories;
