//! What is watched, with which selectors.
