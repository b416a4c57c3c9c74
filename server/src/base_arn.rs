//! Finds the base ARN where none was given.
