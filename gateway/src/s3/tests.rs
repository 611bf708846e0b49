//! The S3 service over a map in memory.
