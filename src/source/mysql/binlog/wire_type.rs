//! How a column's values lie in a row: the type of the table map, with its metadata.

use super::{
    Flavor,
    reader::{Reader, Short},
};

const STRING: u8 = 254;
const ENUM: u8 = 247;
const SET: u8 = 248;

/// A column's type as the binlog has it. Signedness, names, labels and character sets are not part of it.
///
/// Source: `calc_field_size` and `Field::save_field_metadata` in MySQL's and MariaDB's servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireType {
    Tiny,
    Short,
    Int24,
    Long,
    LongLong,
    Float,
    Double,
    Null,
    Year,
    Date,
    /// The formats of before MySQL 5.6 and MariaDB 10.1, whole seconds.
    OldTime,
    OldDateTime,
    OldTimestamp,
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
    },
    Timestamp {
        digits: u8,
    },
    Decimal {
        precision: u8,
        scale: u8,
    },
    Bit {
        bits: u16,
    },
    /// VARCHAR and VARBINARY of at most so many bytes.
    Varchar {
        bytes_max: u16,
    },
    /// CHAR and BINARY, and MariaDB's UUID and INET types.
    Fixed {
        bytes_max: u16,
    },
    Enum {
        width: u8,
    },
    Set {
        width: u8,
    },
    /// BLOB and TEXT with a length of so many bytes.
    Blob {
        prefix: u8,
    },
    Json {
        prefix: u8,
    },
    Geometry {
        prefix: u8,
    },
    Vector {
        prefix: u8,
    },
    /// MariaDB's COMPRESSED columns.
    VarcharCompressed {
        bytes_max: u16,
    },
    BlobCompressed {
        prefix: u8,
    },
}

/// What a value takes up in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    Fixed(usize),
    /// A length of so many bytes, then the value.
    Prefixed(u8),
}

impl WireType {
    /// Reads a column's metadata. `None` if the type or its metadata is none that a server writes.
    pub(super) fn read(code: u8, metadata: &mut Reader<'_>) -> Result<Option<WireType>, Short> {
        let fraction = |digits: u8| (digits <= 6).then_some(digits);
        let prefix = |width: u8| (1..=4).contains(&width).then_some(width);
        Ok(match code {
            1 => Some(WireType::Tiny),
            2 => Some(WireType::Short),
            3 => Some(WireType::Long),
            4 => (metadata.u8()? == 4).then_some(WireType::Float),
            5 => (metadata.u8()? == 8).then_some(WireType::Double),
            6 => Some(WireType::Null),
            7 => Some(WireType::OldTimestamp),
            8 => Some(WireType::LongLong),
            9 => Some(WireType::Int24),
            10 | 14 => Some(WireType::Date),
            11 => Some(WireType::OldTime),
            12 => Some(WireType::OldDateTime),
            13 => Some(WireType::Year),
            15 | 253 => Some(WireType::Varchar { bytes_max: metadata.u16()? }),
            16 => {
                let (bits, bytes) = (u16::from(metadata.u8()?), u16::from(metadata.u8()?));
                let bits = bytes * 8 + bits;
                (1..=64).contains(&bits).then_some(WireType::Bit { bits })
            }
            17 => fraction(metadata.u8()?).map(|digits| WireType::Timestamp { digits }),
            18 => fraction(metadata.u8()?).map(|digits| WireType::DateTime { digits }),
            19 => fraction(metadata.u8()?).map(|digits| WireType::Time { digits }),
            140 => prefix(metadata.u8()?).map(|prefix| WireType::BlobCompressed { prefix }),
            141 => Some(WireType::VarcharCompressed { bytes_max: metadata.u16()? }),
            242 => prefix(metadata.u8()?).map(|prefix| WireType::Vector { prefix }),
            245 => prefix(metadata.u8()?).map(|prefix| WireType::Json { prefix }),
            246 => {
                let (precision, scale) = (metadata.u8()?, metadata.u8()?);
                let valid = (1..=65).contains(&precision) && scale <= precision && scale <= 38;
                valid.then_some(WireType::Decimal { precision, scale })
            }
            249..=252 => prefix(metadata.u8()?).map(|prefix| WireType::Blob { prefix }),
            255 => prefix(metadata.u8()?).map(|prefix| WireType::Geometry { prefix }),
            STRING | ENUM | SET => Self::string(metadata.u8()?, metadata.u8()?),
            _ => None,
        })
    }

    /// MYSQL_TYPE_STRING hides the real type in its first metadata byte, and two bits of a CHAR's length in
    /// what the real type leaves unused: <https://bugs.mysql.com/bug.php?id=37426>.
    fn string(first: u8, second: u8) -> Option<WireType> {
        let (real, length) = if first & 0x30 == 0x30 {
            (first, u16::from(second))
        } else {
            (first | 0x30, u16::from(second) | u16::from(first & 0x30 ^ 0x30) << 4)
        };
        match real {
            STRING => Some(WireType::Fixed { bytes_max: length }),
            ENUM => matches!(second, 1 | 2).then_some(WireType::Enum { width: second }),
            SET => matches!(second, 1..=4 | 8).then_some(WireType::Set { width: second }),
            _ => None,
        }
    }

    pub(super) fn extent(self) -> Extent {
        match self {
            WireType::Null => Extent::Fixed(0),
            WireType::Tiny | WireType::Year => Extent::Fixed(1),
            WireType::Short => Extent::Fixed(2),
            WireType::Int24 | WireType::Date | WireType::OldTime => Extent::Fixed(3),
            WireType::Long | WireType::Float | WireType::OldTimestamp => Extent::Fixed(4),
            WireType::LongLong | WireType::Double | WireType::OldDateTime => Extent::Fixed(8),
            WireType::Time { digits } => Extent::Fixed(3 + fraction_bytes(digits)),
            WireType::Timestamp { digits } => Extent::Fixed(4 + fraction_bytes(digits)),
            WireType::DateTime { digits } => Extent::Fixed(5 + fraction_bytes(digits)),
            WireType::Decimal { precision, scale } => Extent::Fixed(super::decimal::stored_bytes(precision, scale)),
            WireType::Bit { bits } => Extent::Fixed(usize::from(bits.div_ceil(8))),
            WireType::Enum { width } | WireType::Set { width } => Extent::Fixed(usize::from(width)),
            WireType::Varchar { bytes_max }
            | WireType::Fixed { bytes_max }
            | WireType::VarcharCompressed { bytes_max } => Extent::Prefixed(if bytes_max > 255 { 2 } else { 1 }),
            WireType::Blob { prefix }
            | WireType::Json { prefix }
            | WireType::Geometry { prefix }
            | WireType::Vector { prefix }
            | WireType::BlobCompressed { prefix } => Extent::Prefixed(prefix),
        }
    }

    /// Whether the signedness bitmap has a bit for it. YEAR counts.
    pub(super) fn is_numeric(self) -> bool {
        matches!(
            self,
            WireType::Tiny
                | WireType::Short
                | WireType::Int24
                | WireType::Long
                | WireType::LongLong
                | WireType::Float
                | WireType::Double
                | WireType::Decimal { .. }
                | WireType::Year
        )
    }

    /// Whether the list of character sets has an entry for it. MariaDB counts geometries (as binary), MySQL does
    /// not; seen on MySQL 8.0.15, 9.7.4 and MariaDB 10.11.19.
    pub(super) fn is_character(self, flavor: Flavor) -> bool {
        match self {
            WireType::Varchar { .. }
            | WireType::Fixed { .. }
            | WireType::Blob { .. }
            | WireType::VarcharCompressed { .. }
            | WireType::BlobCompressed { .. } => true,
            WireType::Geometry { .. } => flavor == Flavor::Mariadb,
            _ => false,
        }
    }
}

/// The bytes that a fraction of a second with so many digits takes.
pub(super) fn fraction_bytes(digits: u8) -> usize {
    usize::from(digits.div_ceil(2))
}
