//! Checkpoints from file to file.
