//! What other decoders get wrong (FACTS.md), and the edges of every type.

use super::{
    super::*,
    build::{column, refused, text, write},
};
use crate::model::Value;

#[test]
fn negative_times_with_fractions_keep_sign_and_value() {
    let time = |digits: u8, stored: &[u8]| {
        column(19, &[digits], &if digits == 0 { "time".into() } else { format!("time({digits})") }).value(stored)
    };
    assert_eq!(time(0, &[0x7f, 0xff, 0xff]), text("-00:00:01.000000"));
    assert_eq!(time(1, &[0x7f, 0xff, 0xff, 0xf6]), text("-00:00:00.100000"));
    assert_eq!(time(2, &[0x7f, 0xff, 0xff, 0xff]), text("-00:00:00.010000"));
    assert_eq!(time(4, &[0x7f, 0xff, 0xff, 0xff, 0xff]), text("-00:00:00.000100"));
    assert_eq!(time(6, &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff]), text("-00:00:00.000001"));
    assert_eq!(time(6, &[0x80, 0, 0, 0, 0, 1]), text("00:00:00.000001"));
    assert_eq!(time(0, &[0x80 + 0x34, 0x6e, 0xfb]), text("838:59:59.000000"));
    assert_eq!(time(0, &[0xff, 0xff, 0xff]), refused(ValueError::Malformed("time")));
}

#[test]
fn mediumint_is_sign_extended() {
    assert_eq!(column(9, &[], "mediumint(9)").value(&[0xfb, 0xff, 0xff]), Ok(Value::Int(-5)));
    assert_eq!(column(9, &[], "mediumint(8) unsigned").value(&[0xfb, 0xff, 0xff]), Ok(Value::Int(16_777_211)));
}

#[test]
fn bigint_unsigned_is_the_only_unsigned_value() {
    assert_eq!(column(8, &[], "bigint(20) unsigned").value(&[0xff; 8]), Ok(Value::UInt(u64::MAX)));
    assert_eq!(column(8, &[], "bigint(20)").value(&[0xff; 8]), Ok(Value::Int(-1)));
    assert_eq!(column(3, &[], "int(10) unsigned").value(&[0xff; 4]), Ok(Value::Int(4_294_967_295)));
    assert_eq!(column(1, &[], "tinyint(1)").value(&[1]), Ok(Value::Int(1)));
}

#[test]
fn a_corrupt_length_is_an_error_and_allocates_nothing() {
    let blob = column(252, &[4], "longblob");
    assert_eq!(blob.value(&[0xff, 0xff, 0xff, 0xff, 1]), refused(ValueError::Truncated));
    let varchar = column(15, &[0x00, 0x04], "varbinary(1024)");
    assert_eq!(varchar.value(&[0xff, 0xff]), refused(ValueError::Truncated));
}

#[test]
fn binary_is_padded_with_the_zeros_that_servers_cut() {
    assert_eq!(column(254, &[254, 4], "binary(4)").value(&[2, 1, 2]), Ok(Value::Bytes(vec![1, 2, 0, 0])));
    assert_eq!(column(254, &[254, 4], "binary(4)").value(&[0]), Ok(Value::Bytes(vec![0; 4])));
    assert_eq!(
        column(254, &[254, 2], "binary(2)").value(&[3, 1, 2, 3]),
        refused(ValueError::Malformed("fixed-length value"))
    );
}

#[test]
fn a_uuid_whose_last_bytes_are_zero_is_whole() {
    let uuid = column(254, &[254, 16], "uuid");
    assert_eq!(uuid.value(&[0]), text("00000000-0000-0000-0000-000000000000"));
}

#[test]
fn char_of_more_than_255_bytes_has_a_long_prefix() {
    // CHAR(255) of utf8mb4: 1020 bytes, whose high bits hide in the first metadata byte.
    let mut wide = column(254, &[0xce, 0xfc], "char(255)");
    wide.charset = Some("utf8mb4");
    assert_eq!(wide.map().columns[0].wire_type, WireType::Fixed { bytes_max: 1020 });
    assert_eq!(wide.value(&[2, 0, b'h', b'i']), text("hi"));
}

#[test]
fn decimal_65_30_is_exact() {
    let decimal = column(246, &[65, 30], "decimal(65,30)");
    let mut stored = [0u8; 30];
    stored[0] = 0x80;
    assert_eq!(decimal.value(&stored), text(&format!("0.{}", "0".repeat(30))));
    assert_eq!(decimal.value(&stored[..29]), refused(ValueError::Truncated));
}

#[test]
fn zero_and_partial_dates_become_what_the_option_says() {
    let date = column(10, &[], "date");
    let datetime = column(18, &[0], "datetime");
    let timestamp = column(17, &[0], "timestamp");
    let options = |zero_dates| DecodeOptions { zero_dates, ..DecodeOptions::default() };
    let error = options(ZeroDates::Error);
    let replace = options(ZeroDates::Replace { year: 1, month: 1, day: 1 });
    // 2020-00-00, and a year 0 with month and day.
    for stored in [[0, 0, 0], [0, 0xc8, 0x0f], [0x21, 0, 0]] {
        assert_eq!(date.value(&stored), Ok(Value::Null));
        assert_eq!(date.value_with(&stored, &error), refused(ValueError::ZeroDate));
        assert_eq!(date.value_with(&stored, &replace), text("0001-01-01Z"));
    }
    assert_eq!(datetime.value(&[0x80, 0, 0, 0, 0]), Ok(Value::Null));
    assert_eq!(timestamp.value(&[0; 4]), Ok(Value::Null));
    assert_eq!(timestamp.value_with(&[0; 4], &replace), text("0001-01-01T00:00:00.000000Z"));
    assert_eq!(timestamp.value(&[0, 0, 0, 1]), text("1970-01-01T00:00:01.000000Z"));
}

#[test]
fn temporal_formats_of_before_5_6_decode() {
    assert_eq!(column(7, &[], "timestamp").value(&[0x80, 0x43, 0x6d, 0x38]), text("2000-01-01T00:00:00.000000Z"));
    let datetime = 20_240_530_101_112u64.to_le_bytes();
    assert_eq!(column(12, &[], "datetime").value(&datetime), text("2024-05-30T10:11:12.000000Z"));
    assert_eq!(column(12, &[], "datetime").value(&[0; 8]), Ok(Value::Null));
    let time = |number: i32| column(11, &[], "time").value(&number.to_le_bytes()[..3]);
    assert_eq!(time(-8_385_959), text("-838:59:59.000000"));
    assert_eq!(time(101_112), text("10:11:12.000000"));
    let fractions = column(12, &[], "datetime(3)");
    let refusal = RowDecoder::new(&fractions.map(), fractions.schema(), &DecodeOptions::default());
    assert!(matches!(refusal, Err(SchemaMismatch::OldTemporalFormat { .. })));
}

#[test]
fn years_count_from_1900_and_zero_is_zero() {
    let year = column(13, &[], "year(4)");
    assert_eq!(year.value(&[0]), Ok(Value::Int(0)));
    assert_eq!(year.value(&[1]), Ok(Value::Int(1901)));
    assert_eq!(year.value(&[255]), Ok(Value::Int(2155)));
}

#[test]
fn enum_numbers_are_labels_also_beyond_255() {
    let labels: Vec<String> = (1..=300).map(|n| format!("'m{n}'")).collect();
    let source_type = format!("enum({})", labels.join(","));
    let wide = column(254, &[247, 2], &source_type);
    assert_eq!(wide.value(&[0x2c, 0x01]), text("m300"));
    assert_eq!(wide.value(&[0, 0]), text(""));
    assert_eq!(wide.value(&[0x2d, 0x01]), refused(ValueError::Malformed("ENUM number")));
    let set = column(254, &[248, 1], "set('a','b')");
    assert_eq!(set.value(&[3]), text("a,b"));
    assert_eq!(set.value(&[4]), refused(ValueError::Malformed("SET number")));
    let full = format!("set({})", (0..64).map(|n| format!("'{n}'")).collect::<Vec<_>>().join(","));
    assert_eq!(column(254, &[248, 8], &full).value(&[0, 0, 0, 0, 0, 0, 0, 0x80]), text("63"));
}

#[test]
fn bits_and_geometries_are_bytes() {
    assert_eq!(column(16, &[4, 1], "bit(12)").value(&[0x0a, 0xaa]), Ok(Value::Bytes(vec![0x0a, 0xaa])));
    let geometry = column(255, &[4], "point");
    assert_eq!(geometry.value(&[6, 0, 0, 0, 1, 2, 3, 4, 9, 8]), Ok(Value::Bytes(vec![9, 8])));
    assert_eq!(column(242, &[4], "vector(1)").value(&[4, 0, 0, 0, 1, 2, 3, 4]), Ok(Value::Bytes(vec![1, 2, 3, 4])));
}

#[test]
fn floats_that_no_server_stores_are_refused() {
    assert_eq!(column(4, &[4], "float").value(&f32::NAN.to_le_bytes()), refused(ValueError::Malformed("float")));
    let infinite = f64::INFINITY.to_le_bytes();
    assert_eq!(column(5, &[8], "double").value(&infinite), refused(ValueError::Malformed("double")));
    assert_eq!(column(5, &[8], "double").value(&(-0.0f64).to_le_bytes()), Ok(Value::Double(-0.0)));
}

#[test]
fn texts_become_utf_8_as_the_server_converts_them() {
    let decode = |charset: &'static str, stored: &[u8]| {
        let mut varchar = column(15, &[200, 0], "varchar(50)");
        varchar.charset = Some(charset);
        varchar.value(&[&[stored.len() as u8], stored].concat())
    };
    assert_eq!(decode("latin1", b"\x80\x81\xe9"), text("€\u{81}é"));
    assert_eq!(decode("utf8mb4", "😀".as_bytes()), text("😀"));
    assert_eq!(decode("sjis", b"\x83\x5c\x81\x5f\x81\x60"), text("ソ\\〜"));
    assert_eq!(decode("cp932", b"\x81\x60\x87\x40"), text("～①"));
    assert_eq!(decode("ujis", b"\xa1\xc1\x8f\xb0\xa1"), text("〜丂"));
    assert_eq!(decode("big5", b"\xa1\x45a\xa4\xa4"), text("•a中"));
    assert_eq!(decode("gbk", b"\xd6\xd0"), text("中"));
    assert_eq!(decode("gb18030", b"\xd6\xd0\x94\x39\xfc\x36"), text("中😀"));
    assert_eq!(decode("euckr", b"\xb0\xa1"), text("가"));
    assert_eq!(decode("koi8r", b"\xc1"), text("а"));
    assert_eq!(decode("swe7", b"}ngstr|m"), text("ångström"));
    assert_eq!(decode("ucs2", b"\x20\xac"), text("€"));
    assert_eq!(decode("utf16", b"\xd8\x3d\xde\x00"), text("😀"));
    assert_eq!(decode("utf16le", b"\xac\x20"), text("€"));
    assert_eq!(decode("utf32", b"\x00\x01\xf6\x00"), text("😀"));
    for (charset, stored) in [
        ("utf8mb4", &b"\xff"[..]),
        ("ascii", b"\x80"),
        ("sjis", b"\x87\x40"),
        ("sjis", b"\x81"),
        ("gbk", b"\x80"),
        ("ucs2", b"\x20"),
        ("utf16", b"\xd8\x3d"),
        ("utf32", b"\x00\x11\x00\x00"),
        ("cp1257", b"\xa1"),
    ] {
        assert_eq!(decode(charset, stored), refused(ValueError::Undecodable(charset)), "{charset} {stored:x?}");
    }
}

#[test]
fn an_unknown_character_set_is_a_mismatch_and_not_a_guess() {
    let mut varchar = column(15, &[200, 0], "varchar(50)");
    varchar.charset = Some("klingon");
    let mismatch = RowDecoder::new(&varchar.map(), varchar.schema(), &DecodeOptions::default());
    assert!(matches!(mismatch, Err(SchemaMismatch::Charset { charset, .. }) if charset == "klingon"));
}

#[test]
fn a_row_without_all_columns_names_binlog_row_image() {
    let int = column(3, &[], "int");
    let decoder = RowDecoder::new(&int.map(), int.schema(), &DecodeOptions::default()).expect("fits");
    let rows = Rows { after_present: &[0], ..write(&[0]) };
    let error = decoder.rows(&rows).expect_err("a partial image");
    assert_eq!(error, DecodeError::PartialImage { column: 1 });
    assert!(error.to_string().contains("binlog_row_image=FULL"));
}

#[test]
fn a_changed_type_is_a_schema_mismatch() {
    for (event, catalog) in [
        (column(3, &[], ""), "bigint(20)"),
        (column(3, &[], ""), "varchar(10)"),
        (column(246, &[10, 2], ""), "decimal(12,2)"),
        (column(18, &[3], ""), "datetime"),
        (column(254, &[247, 1], ""), "set('a')"),
        (column(252, &[2], ""), "json"),
        (column(16, &[4, 1], ""), "bit(13)"),
    ] {
        let catalog = column(event.code, event.metadata, catalog);
        let mismatch = RowDecoder::new(&event.map(), catalog.schema(), &DecodeOptions::default());
        assert!(mismatch.is_err(), "{}", catalog.source_type);
    }
    let int = column(3, &[], "int unsigned");
    let mut map = int.map();
    map.metadata.unsigned = Some(vec![Some(false)]);
    assert!(RowDecoder::new(&map, int.schema(), &DecodeOptions::default()).is_err());
    map.metadata = OptionalMetadata { names: Some(vec!["d".into()]), ..OptionalMetadata::default() };
    let mismatch = RowDecoder::new(&map, int.schema(), &DecodeOptions::default());
    assert!(matches!(mismatch, Err(SchemaMismatch::ColumnName { .. })));
}

mod json {
    use super::*;

    fn json(document: &[u8]) -> Result<Value, DecodeError> {
        let stored = [&(document.len() as u32).to_le_bytes(), document].concat();
        column(245, &[4], "json").value(&stored)
    }

    #[test]
    fn an_empty_document_is_null() {
        assert_eq!(json(&[]), text("null"));
    }

    #[test]
    fn small_and_large_containers_decode() {
        // [1, "a"]
        assert_eq!(json(&[2, 2, 0, 12, 0, 5, 1, 0, 12, 10, 0, 1, b'a']), text("[1, \"a\"]"));
        // {"k": 100000} with 4-byte offsets, the number in its entry
        let large = [1, 1, 0, 0, 0, 20, 0, 0, 0, 19, 0, 0, 0, 1, 0, 7, 0xa0, 0x86, 1, 0, b'k'];
        assert_eq!(json(&large), text("{\"k\": 100000}"));
    }

    #[test]
    fn an_offset_back_to_its_own_container_is_refused() {
        // An array of two that both point to the array itself: printing it would never end.
        let document = [2, 2, 0, 10, 0, 2, 0, 0, 2, 0, 0];
        assert!(json(&document).is_err());
    }

    #[test]
    fn many_entries_of_one_value_are_refused() {
        // 1,000 entries that share a string of 1,000 bytes: no server writes that.
        let (count, length) = (1000u16, 1000u16);
        let size = 4 + 3 * count + 2 + length;
        let mut document = vec![2];
        document.extend(count.to_le_bytes());
        document.extend(size.to_le_bytes());
        for _ in 0..count {
            document.push(12);
            document.extend((4 + 3 * count).to_le_bytes());
        }
        document.extend([0xe8, 0x07]);
        document.extend(vec![b'x'; usize::from(length)]);
        assert_eq!(json(&document), refused(ValueError::Malformed("JSON document")));
    }
}
