//! Copying tables in chunks, beside the stream.
