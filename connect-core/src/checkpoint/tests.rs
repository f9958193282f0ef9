//! Checkpoints from file to file, damaged ones, and files that change while they are served.

mod download;
mod files;
mod headers;
mod made;
