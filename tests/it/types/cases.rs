//! The table of docs/types.md as test cases: a column, the values that go in, and what PostgreSQL shows of them.

/// A column of some type and what its values become. `row` is the first cell of the type's row in docs/types.md.
pub struct Case {
    pub row: &'static str,
    pub on: On,
    /// The column's definition at the source, after its name; `{labels:3}` stands for `'m1','m2','m3'`.
    pub column: &'static str,
    /// The type that `init` gives the column.
    pub target: &'static str,
    /// SQL literals, and each value's text in PostgreSQL, or after `sql: ` an expression of PostgreSQL for it.
    pub values: &'static [(&'static str, Option<&'static str>)],
}

/// Which servers have the type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    All,
    Mysql,
    Mysql57,
    Mysql80AndLater,
    Mysql97,
    Mariadb,
}

const fn all(
    row: &'static str,
    column: &'static str,
    target: &'static str,
    values: &'static [(&'static str, Option<&'static str>)],
) -> Case {
    Case { row, on: On::All, column, target, values }
}

const fn only(on: On, case: Case) -> Case {
    Case { on, ..case }
}

const POINT: &str = r"\x0101000000000000000000f03f0000000000000040";

pub const CASES: &[Case] = &[
    // Integers
    all(
        "TINYINT",
        "tinyint",
        "smallint",
        &[("-128", Some("-128")), ("127", Some("127")), ("0", Some("0")), ("NULL", None)],
    ),
    all("TINYINT", "tinyint(1)", "smallint", &[("TRUE", Some("1")), ("2", Some("2")), ("-1", Some("-1"))]),
    all("TINYINT UNSIGNED", "tinyint unsigned", "smallint", &[("255", Some("255")), ("128", Some("128"))]),
    all("SMALLINT", "smallint", "smallint", &[("-32768", Some("-32768")), ("32767", Some("32767"))]),
    all("SMALLINT UNSIGNED", "smallint unsigned", "integer", &[("65535", Some("65535")), ("32768", Some("32768"))]),
    all(
        "MEDIUMINT",
        "mediumint",
        "integer",
        &[("-8388608", Some("-8388608")), ("-5", Some("-5")), ("8388607", Some("8388607"))],
    ),
    all(
        "MEDIUMINT UNSIGNED",
        "mediumint unsigned",
        "integer",
        &[("16777215", Some("16777215")), ("8388608", Some("8388608"))],
    ),
    all("INT", "int", "integer", &[("-2147483648", Some("-2147483648")), ("2147483647", Some("2147483647"))]),
    all(
        "INT UNSIGNED",
        "int unsigned",
        "bigint",
        &[("4294967295", Some("4294967295")), ("2147483648", Some("2147483648"))],
    ),
    all("INT UNSIGNED", "int(7) unsigned zerofill", "bigint", &[("42", Some("42")), ("0", Some("0"))]),
    all(
        "BIGINT",
        "bigint",
        "bigint",
        &[("-9223372036854775808", Some("-9223372036854775808")), ("9223372036854775807", Some("9223372036854775807"))],
    ),
    all(
        "BIGINT UNSIGNED",
        "bigint unsigned",
        "numeric(20,0)",
        &[
            ("18446744073709551615", Some("18446744073709551615")),
            ("9223372036854775808", Some("9223372036854775808")),
            ("0", Some("0")),
        ],
    ),
    all("BIGINT UNSIGNED", "bigint(20) unsigned zerofill", "numeric(20,0)", &[("7", Some("7"))]),
    // Exact and approximate numbers
    all(
        "DECIMAL",
        "decimal(65,30)",
        "numeric(65,30)",
        &[
            (
                "99999999999999999999999999999999999.999999999999999999999999999999",
                Some("99999999999999999999999999999999999.999999999999999999999999999999"),
            ),
            (
                "-12345678901234567890123456789012345.000000000000000000000000000001",
                Some("-12345678901234567890123456789012345.000000000000000000000000000001"),
            ),
            ("0", Some("0.000000000000000000000000000000")),
            ("-0.5", Some("-0.500000000000000000000000000000")),
        ],
    ),
    all("DECIMAL", "decimal(10,0)", "numeric(10,0)", &[("-9999999999", Some("-9999999999")), ("1", Some("1"))]),
    all(
        "DECIMAL",
        "decimal(9,9)",
        "numeric(9,9)",
        &[("-0.000000001", Some("-0.000000001")), ("0.5", Some("0.500000000"))],
    ),
    all("DECIMAL", "decimal(8,2) unsigned zerofill", "numeric(8,2)", &[("12.5", Some("12.50")), ("0", Some("0.00"))]),
    all(
        "FLOAT",
        "float",
        "real",
        &[
            ("3.402823466e38", Some("3.4028235e+38")),
            ("-1.175494351e-38", Some("-1.1754944e-38")),
            ("1.1", Some("1.1")),
            ("16777217", Some("1.6777216e+07")),
            ("0.1e0 + 0.2e0", Some("0.3")),
        ],
    ),
    only(On::Mysql, all("FLOAT", "float", "real", &[("-0e0", Some("-0"))])),
    all("FLOAT", "float(7,4)", "real", &[("123.4567", Some("123.4567")), ("-1.5", Some("-1.5"))]),
    all(
        "DOUBLE",
        "double",
        "double precision",
        &[
            ("1.7976931348623157e308", Some("1.7976931348623157e+308")),
            ("-2.2250738585072014e-308", Some("-2.2250738585072014e-308")),
            ("0.1e0 + 0.2e0", Some("0.30000000000000004")),
            ("9007199254740993", Some("9.007199254740992e+15")),
            ("1e15", Some("1e+15")),
        ],
    ),
    only(On::Mysql, all("DOUBLE", "double", "double precision", &[("-0e0", Some("-0"))])),
    all("BIT", "bit(1)", "bytea", &[("b'1'", Some(r"\x01")), ("b'0'", Some(r"\x00")), ("NULL", None)]),
    all("BIT", "bit(10)", "bytea", &[("b'1000000001'", Some(r"\x0201")), ("b'1'", Some(r"\x0001"))]),
    all("BIT", "bit(64)", "bytea", &[("~0", Some(r"\xffffffffffffffff")), ("1", Some(r"\x0000000000000001"))]),
    all("YEAR", "year", "smallint", &[("1901", Some("1901")), ("2155", Some("2155")), ("'0000'", Some("0"))]),
    // Dates and times; the writer's session is at +05:30
    all(
        "DATE",
        "date",
        "date",
        &[
            ("'1000-01-01'", Some("1000-01-01")),
            ("'0001-01-01'", Some("0001-01-01")),
            ("'9999-12-31'", Some("9999-12-31")),
            ("'2024-02-29'", Some("2024-02-29")),
            ("'0000-00-00'", None),
            ("'2010-00-00'", None),
            ("'2010-10-00'", None),
        ],
    ),
    all(
        "DATETIME",
        "datetime",
        "timestamp",
        &[
            ("'9999-12-31 23:59:59'", Some("9999-12-31 23:59:59")),
            ("'1969-12-31 23:59:59'", Some("1969-12-31 23:59:59")),
            ("'0001-01-01 00:00:00'", Some("0001-01-01 00:00:00")),
            ("'0000-00-00 00:00:00'", None),
            ("'2010-00-10 01:02:03'", None),
        ],
    ),
    all("DATETIME", "datetime(1)", "timestamp", &[("'2024-05-30 10:00:00.1'", Some("2024-05-30 10:00:00.1"))]),
    all("DATETIME", "datetime(3)", "timestamp", &[("'2024-05-30 10:00:00.123'", Some("2024-05-30 10:00:00.123"))]),
    all(
        "DATETIME",
        "datetime(6)",
        "timestamp",
        &[("'2024-05-30 10:00:00.000001'", Some("2024-05-30 10:00:00.000001")), ("'0000-00-00'", None)],
    ),
    all(
        "TIMESTAMP",
        "timestamp NULL",
        "timestamptz",
        &[
            ("'2024-05-30 10:00:00'", Some("2024-05-30 04:30:00+00")),
            ("'1970-01-01 05:30:01'", Some("1970-01-01 00:00:01+00")),
            ("'2038-01-19 08:44:07'", Some("2038-01-19 03:14:07+00")),
            ("'0000-00-00 00:00:00'", None),
            ("NULL", None),
        ],
    ),
    all(
        "TIMESTAMP",
        "timestamp(2) NULL",
        "timestamptz",
        &[("'2024-05-30 10:00:00.99'", Some("2024-05-30 04:30:00.99+00"))],
    ),
    all(
        "TIMESTAMP",
        "timestamp(6) NULL",
        "timestamptz",
        &[("'2024-01-01 00:00:00.000001'", Some("2023-12-31 18:30:00.000001+00"))],
    ),
    all(
        "TIME",
        "time",
        "interval",
        &[
            ("'838:59:59'", Some("838:59:59")),
            ("'-838:59:59'", Some("-838:59:59")),
            ("'-00:00:01'", Some("-00:00:01")),
            ("'00:00:00'", Some("00:00:00")),
            ("'12:34:56'", Some("12:34:56")),
        ],
    ),
    all("TIME", "time(1)", "interval", &[("'-00:00:00.1'", Some("-00:00:00.1")), ("'00:00:59.9'", Some("00:00:59.9"))]),
    all("TIME", "time(2)", "interval", &[("'-00:00:00.01'", Some("-00:00:00.01")), ("'-10:00:00'", Some("-10:00:00"))]),
    all(
        "TIME",
        "time(3)",
        "interval",
        &[("'-00:00:00.001'", Some("-00:00:00.001")), ("'-01:00:00.999'", Some("-01:00:00.999"))],
    ),
    all("TIME", "time(4)", "interval", &[("'-00:00:00.0001'", Some("-00:00:00.0001"))]),
    all("TIME", "time(5)", "interval", &[("'-00:00:00.00001'", Some("-00:00:00.00001"))]),
    all(
        "TIME",
        "time(6)",
        "interval",
        &[("'-838:59:58.999999'", Some("-838:59:58.999999")), ("'00:00:00.000001'", Some("00:00:00.000001"))],
    ),
    // Text
    all(
        "CHAR",
        "char(10) CHARACTER SET latin1",
        "text",
        &[
            ("'é'", Some("é")),
            ("'a  '", Some("a")),
            ("''", Some("")),
            ("'€'", Some("€")),
            ("_latin1 x'81'", Some("\u{81}")),
        ],
    ),
    all(
        "CHAR",
        "char(255) CHARACTER SET utf8mb4",
        "text",
        &[("'日本'", Some("日本")), ("REPEAT('😀', 255)", Some("sql: repeat('😀', 255)"))],
    ),
    all(
        "CHAR",
        "char(36) CHARACTER SET ascii",
        "text",
        &[("'123e4567-e89b-12d3-a456-426655440000'", Some("123e4567-e89b-12d3-a456-426655440000"))],
    ),
    all(
        "VARCHAR",
        "varchar(40) CHARACTER SET utf8",
        "text",
        &[("'naïve ☃'", Some("naïve ☃")), ("'a  '", Some("a  ")), (r"'q''\\\n'", Some("q'\\\n"))],
    ),
    all(
        "VARCHAR",
        "varchar(300) CHARACTER SET utf8mb4",
        "text",
        &[("'😀 {\"a\"}'", Some("😀 {\"a\"}")), ("''", Some(""))],
    ),
    all(
        "VARCHAR",
        "varchar(40) CHARACTER SET sjis",
        "text",
        &[
            ("'表示ソ'", Some("表示ソ")),
            ("'ｱ~'", Some("ｱ~")),
            ("_sjis x'8160'", Some("\u{301c}")),
            ("_sjis x'5c'", Some("\\")),
        ],
    ),
    all(
        "VARCHAR",
        "varchar(40) CHARACTER SET cp932",
        "text",
        &[("_cp932 x'8160'", Some("\u{ff5e}")), ("'①'", Some("①"))],
    ),
    all("VARCHAR", "varchar(40) CHARACTER SET ujis", "text", &[("'日本語ｱ'", Some("日本語ｱ"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET gbk", "text", &[("'汉字'", Some("汉字"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET big5", "text", &[("'漢字'", Some("漢字"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET euckr", "text", &[("'한국어'", Some("한국어"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET cp1251", "text", &[("'Привет Ё'", Some("Привет Ё"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET koi8r", "text", &[("'Привет Ё'", Some("Привет Ё"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET latin2", "text", &[("'Łódź'", Some("Łódź"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET latin5", "text", &[("'İğ'", Some("İğ"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET greek", "text", &[("'Ελλάς'", Some("Ελλάς"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET ucs2", "text", &[("'é☃'", Some("é☃"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET utf16", "text", &[("'é😀'", Some("é😀"))]),
    all("VARCHAR", "varchar(40) CHARACTER SET utf32", "text", &[("'é😀'", Some("é😀"))]),
    all("TEXT", "tinytext CHARACTER SET latin1", "text", &[("'ÿ'", Some("ÿ")), ("''", Some(""))]),
    all("TEXT", "text CHARACTER SET utf8mb4", "text", &[("'tab\\tline\\nend  '", Some("tab\tline\nend  "))]),
    all("TEXT", "mediumtext CHARACTER SET utf8mb4", "text", &[("REPEAT('é', 40000)", Some("sql: repeat('é', 40000)"))]),
    all("TEXT", "longtext CHARACTER SET sjis", "text", &[("'表'", Some("表")), ("NULL", None)]),
    // Bytes
    all(
        "BINARY",
        "binary(4)",
        "bytea",
        &[("'ab'", Some(r"\x61620000")), ("x'00000000'", Some(r"\x00000000")), ("x'01020300'", Some(r"\x01020300"))],
    ),
    all("VARBINARY", "varbinary(300)", "bytea", &[("x'00ff00'", Some(r"\x00ff00")), ("''", Some(r"\x"))]),
    all("BLOB", "tinyblob", "bytea", &[("x'00ff'", Some(r"\x00ff")), ("''", Some(r"\x"))]),
    all("BLOB", "blob", "bytea", &[("x'5c27220a00'", Some(r"\x5c27220a00")), ("NULL", None)]),
    all("BLOB", "mediumblob", "bytea", &[("x'80'", Some(r"\x80"))]),
    all("BLOB", "longblob", "bytea", &[("x'c3'", Some(r"\xc3"))]),
    // Labels
    all(
        "ENUM",
        "enum('a','B','it''s','é') CHARACTER SET latin1",
        "text",
        &[
            ("'a'", Some("a")),
            ("'B'", Some("B")),
            ("'it''s'", Some("it's")),
            ("'é'", Some("é")),
            ("'other'", Some("")),
            ("NULL", None),
        ],
    ),
    all(
        "ENUM",
        "enum({labels:300})",
        "text",
        &[("1", Some("m1")), ("255", Some("m255")), ("256", Some("m256")), ("300", Some("m300"))],
    ),
    all(
        "SET",
        "set('a','b','c d')",
        "text",
        &[("''", Some("")), ("'a'", Some("a")), ("'c d,a'", Some("a,c d")), ("7", Some("a,b,c d"))],
    ),
    all("SET", "set({labels:64})", "text", &[("'m64,m1'", Some("m1,m64")), ("0", Some(""))]),
    // JSON
    only(On::Mysql, all("JSON", "json", "jsonb", JSON)),
    // MySQL 5.7 prints the double 1.0 as an integer.
    only(
        On::Mysql57,
        all("JSON", "json", "jsonb", &[(JSON_PLAIN, Some(r#"{"a": [1, 2, null, true, false], "b": 1}"#))]),
    ),
    only(
        On::Mysql80AndLater,
        all("JSON", "json", "jsonb", &[(JSON_PLAIN, Some(r#"{"a": [1.0, 2, null, true, false], "b": 1}"#))]),
    ),
    only(On::Mysql57, all("JSON", "json", "jsonb", &[(JSON_BINARY, Some(r#"{"b": "base64:type253:YWJj"}"#))])),
    only(On::Mysql80AndLater, all("JSON", "json", "jsonb", &[(JSON_BINARY, Some(r#"{"b": "base64:type15:YWJj"}"#))])),
    only(
        On::Mariadb,
        all(
            "JSON (MariaDB)",
            "json",
            "jsonb",
            &[
                (
                    r#"'{"b": 1,  "a": [1.0, 18446744073709551616, null]}'"#,
                    Some(r#"{"a": [1.0, 18446744073709551616, null], "b": 1}"#),
                ),
                (r#"'{"a": 1, "a": "é😀"}'"#, Some(r#"{"a": "é😀"}"#)),
                ("'null'", Some("null")),
                ("NULL", None),
            ],
        ),
    ),
    // Geometry
    all("GEOMETRY", "geometry", "bytea", &[("ST_GeomFromText('POINT(1 2)')", Some(POINT)), ("NULL", None)]),
    all("GEOMETRY", "point", "bytea", &[("ST_GeomFromText('POINT(1 2)', 3857)", Some(POINT))]),
    all(
        "GEOMETRY",
        "linestring",
        "bytea",
        &[(
            "ST_GeomFromText('LINESTRING(0 0,1 1)')",
            Some(r"\x01020000000200000000000000000000000000000000000000000000000000f03f000000000000f03f"),
        )],
    ),
    all(
        "GEOMETRY",
        "geometrycollection",
        "bytea",
        &[(
            "ST_GeomFromText('GEOMETRYCOLLECTION(POINT(1 2))')",
            Some(r"\x0107000000010000000101000000000000000000f03f0000000000000040"),
        )],
    ),
    // Generated: the harness has a column `n` that is 7
    all("generated columns", "int AS (n + 1) STORED", "integer", &[("DEFAULT", Some("8"))]),
    all("generated columns", "int AS (n + 2) VIRTUAL", "integer", &[("DEFAULT", Some("9"))]),
    all("generated columns", "varchar(40) AS (CONCAT('é', n)) VIRTUAL", "text", &[("DEFAULT", Some("é7"))]),
    // What only one of them has
    only(
        On::Mariadb,
        all(
            "UUID (MariaDB)",
            "uuid",
            "text",
            &[
                ("'123E4567-e89b-12d3-a456-426655440000'", Some("123e4567-e89b-12d3-a456-426655440000")),
                ("'00000000-0000-0000-0000-000000000000'", Some("00000000-0000-0000-0000-000000000000")),
                ("'ffffffff-ffff-4fff-bfff-ffffff000000'", Some("ffffffff-ffff-4fff-bfff-ffffff000000")),
                ("'b0000000-0000-1000-8000-00a0c91e6bf6'", Some("b0000000-0000-1000-8000-00a0c91e6bf6")),
            ],
        ),
    ),
    only(
        On::Mariadb,
        all(
            "INET6 (MariaDB)",
            "inet6",
            "text",
            &[
                ("'::'", Some("::")),
                ("'::1'", Some("::1")),
                ("'2001:DB8::ff00:42:8329'", Some("2001:db8::ff00:42:8329")),
                ("'::ffff:192.0.2.1'", Some("::ffff:192.0.2.1")),
                ("'1:0:0:2::'", Some("1:0:0:2::")),
            ],
        ),
    ),
    only(
        On::Mariadb,
        all(
            "INET4 (MariaDB)",
            "inet4",
            "text",
            &[
                ("'192.168.0.1'", Some("192.168.0.1")),
                ("'0.0.0.0'", Some("0.0.0.0")),
                ("'255.255.255.0'", Some("255.255.255.0")),
            ],
        ),
    ),
    only(
        On::Mysql97,
        all("VECTOR", "vector(2)", "bytea", &[("STRING_TO_VECTOR('[1, -2.5]')", Some(r"\x0000803f000020c0"))]),
    ),
];

const JSON_PLAIN: &str = r#"'{"b": 1, "a": [1.0, 2, null, true, false]}'"#;
const JSON_BINARY: &str = "JSON_OBJECT('b', CAST('abc' AS BINARY))";

/// MySQL's own spelling of numbers, dates and decimals inside a document has to reach jsonb digit by digit.
const JSON: &[(&str, Option<&str>)] = &[
    (
        "'[18446744073709551615, -9223372036854775808, 9223372036854775807, 65536, -32769]'",
        Some("[18446744073709551615, -9223372036854775808, 9223372036854775807, 65536, -32769]"),
    ),
    (
        "'[0.1, 1e-7, 123456789.125, 1.5e300]'",
        Some("sql: '[0.1, 0.0000001, 123456789.125, 15' || repeat('0', 299) || ']'"),
    ),
    (
        "JSON_OBJECT('d', CAST('-12345678901234567890.1234567890' AS DECIMAL(40,10)))",
        Some(r#"{"d": -12345678901234567890.1234567890}"#),
    ),
    (
        "JSON_OBJECT('d', CAST('2020-01-02' AS DATE), 't', CAST('-10:00:00.5' AS TIME(1)), 'u', CAST('2020-01-02 03:04:05.123456' AS DATETIME(6)))",
        Some(r#"{"d": "2020-01-02", "t": "-10:00:00.500000", "u": "2020-01-02 03:04:05.123456"}"#),
    ),
    (r#"'["\\u00e9\\n\\"\\\\\\/\\u0001", "😀"]'"#, Some(r#"["é\n\"\\/\u0001", "😀"]"#)),
    ("'{}'", Some("{}")),
    ("'[]'", Some("[]")),
    ("'null'", Some("null")),
    ("'\"x\"'", Some("\"x\"")),
    ("'-3'", Some("-3")),
    ("JSON_ARRAY(REPEAT('é', 40000))", Some("sql: '[\"' || repeat('é', 40000) || '\"]'")),
    ("NULL", None),
];
