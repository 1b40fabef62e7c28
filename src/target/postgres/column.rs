//! One column of many rows, as the array that a statement takes.
//!
//! The client writes a statement into a buffer that grows and that it never gives back, and a transaction of wide rows
//! has a connection that cannot be made anew before its end. Wide values are written into a buffer of their own size
//! instead, which the next such statement lets go of before it takes its own.

use std::error::Error;

use bytes::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

/// From here on an array has a buffer of its own.
const WIDE_BYTES: usize = 1 << 20;
/// For the parameters after it, which are narrow.
const REST_BYTES: usize = 64 << 10;
/// In front of each element of an array, and before the first (PostgreSQL, `array_send`).
const LENGTH_BYTES: usize = 4;
const HEADER_BYTES: usize = 20;

/// The values of one column, as text.
#[derive(Debug)]
pub struct Column<'a>(pub Vec<Option<&'a str>>);

impl Column<'_> {
    /// What the array has on the wire.
    fn bytes(&self) -> usize {
        HEADER_BYTES + self.0.iter().map(|value| LENGTH_BYTES + value.map_or(0, str::len)).sum::<usize>()
    }
}

impl ToSql for Column<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let bytes = self.bytes();
        if bytes > WIDE_BYTES {
            // The buffer of the statement before goes first: both would be there at once.
            let before = std::mem::take(out).to_vec();
            out.reserve(before.len() + bytes + REST_BYTES);
            out.extend_from_slice(&before);
        }
        self.0.to_sql(ty, out)
    }

    fn accepts(ty: &Type) -> bool {
        Vec::<Option<&str>>::accepts(ty)
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_values_have_a_buffer_of_their_own_size() {
        let wide = "w".repeat(WIDE_BYTES);
        let column = Column(vec![Some(&wide), None, Some("narrow")]);
        let mut out = BytesMut::from(&b"before"[..]);
        column.to_sql(&Type::TEXT_ARRAY, &mut out).expect("encodes");
        assert_eq!(out.len(), "before".len() + column.bytes());
        assert!(out.capacity() <= out.len() + REST_BYTES);
        let mut same = BytesMut::from(&b"before"[..]);
        column.0.to_sql(&Type::TEXT_ARRAY, &mut same).expect("encodes");
        assert_eq!(out, same);
    }
}
