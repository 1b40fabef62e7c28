//! Every type of attribute, as its JSON and in a row; and any item, read back from its JSON.

use aws_sdk_dynamodb::{primitives::Blob, types::AttributeValue as Given};
use proptest::prelude::*;

use super::*;

fn given(value: Given) -> String {
    let item = item([("a".to_owned(), value)]).expect("known");
    json(&item).expect("spelled")
}

#[test]
fn every_type_of_attribute_has_its_json() {
    for (value, expected) in [
        (Given::S("plain \"and\" \\ \n é \u{1}".into()), r#"{"a":"plain \"and\" \\ \n é \u0001"}"#),
        (Given::S(String::new()), r#"{"a":""}"#),
        (
            Given::N("0.1234567890123456789012345678901234567".into()),
            r#"{"a":0.1234567890123456789012345678901234567}"#,
        ),
        (
            Given::N("-12345678901234567890123456789012345678".into()),
            r#"{"a":-12345678901234567890123456789012345678}"#,
        ),
        (Given::N("1E+125".into()), r#"{"a":1E+125}"#),
        (Given::B(Blob::new([0, 255])), r#"{"a":"AP8="}"#),
        (Given::B(Blob::new([])), r#"{"a":""}"#),
        (Given::Bool(true), r#"{"a":true}"#),
        (Given::Null(true), r#"{"a":null}"#),
        (Given::L(vec![Given::N("1".into()), Given::S("1".into()), Given::L(vec![])]), r#"{"a":[1,"1",[]]}"#),
        (Given::M([("x".to_owned(), Given::Bool(false))].into()), r#"{"a":{"x":false}}"#),
        (Given::Ss(vec!["b".into(), "a".into()]), r#"{"a":["a","b"]}"#),
        (Given::Ns(vec!["2".into(), "1.5".into()]), r#"{"a":[1.5,2]}"#),
        (Given::Bs(vec![Blob::new([2]), Blob::new([1])]), r#"{"a":["AQ==","Ag=="]}"#),
    ] {
        assert_eq!(given(value), expected);
    }
}

#[test]
fn what_is_no_number_is_refused_and_not_written_as_json() {
    for text in ["", "-", "01", "1.", ".5", "1e", "NaN", "Infinity", "1 ", "+1", "1e+", "--1", "0x1"] {
        assert_eq!(json_number(text), Err(AttributeError::NotANumber), "{text}");
    }
}

#[test]
fn a_row_has_the_key_the_item_and_whether_time_to_live_removed_it() {
    let schema =
        table_schema("eu-west-1", "Books", &[("isbn".into(), KeyType::Text), ("year".into(), KeyType::Number)]);
    let book = Item::from([
        ("isbn".into(), Attribute::Text("978".into())),
        ("year".into(), Attribute::Number("2001".into())),
        ("title".into(), Attribute::Text("A".into())),
    ]);
    let text = |text: &str| Value::Text(text.into());
    let expected =
        vec![text("978"), text("2001"), text(r#"{"isbn":"978","title":"A","year":2001}"#), Value::Bool(true)];
    assert_eq!(row(&schema, &book, true), Ok(expected));
    assert_eq!(key_item(&schema, &[text("978"), text("2001")]).map(|key| key.len()), Ok(2));
    let mistyped = Item::from([("isbn".into(), Attribute::Number("978".into()))]);
    assert_eq!(row(&schema, &mistyped, false), Err(AttributeError::Key("isbn".into())));
}

fn attributes() -> impl Strategy<Value = Attribute> {
    let number = "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,17})?(E[+-]?[0-9]{1,2})?";
    let leaf = prop_oneof![
        Just(Attribute::Null),
        any::<bool>().prop_map(Attribute::Bool),
        number.prop_map(Attribute::Number),
        any::<String>().prop_map(Attribute::Text),
        any::<Vec<u8>>().prop_map(Attribute::Bytes),
        prop::collection::vec(any::<String>(), 1..4).prop_map(Attribute::Texts),
        prop::collection::vec(number, 1..4).prop_map(Attribute::Numbers),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Attribute::List),
            prop::collection::btree_map(any::<String>(), inner, 0..4).prop_map(Attribute::Map),
        ]
    })
}

/// What a reader of the JSON sees, with numbers as they are spelled.
fn seen(attribute: &Attribute) -> serde_json::Value {
    use serde_json::Value as Json;
    let number = |text: &String| serde_json::from_str::<Json>(text).expect("a number");
    match attribute {
        Attribute::Null => Json::Null,
        Attribute::Bool(flag) => Json::Bool(*flag),
        Attribute::Number(text) => number(text),
        Attribute::Text(text) => Json::String(text.clone()),
        Attribute::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
        Attribute::List(list) => Json::Array(list.iter().map(seen).collect()),
        Attribute::Map(map) => Json::Object(map.iter().map(|(name, value)| (name.clone(), seen(value))).collect()),
        Attribute::Texts(texts) => Json::Array(texts.iter().cloned().map(Json::String).collect()),
        Attribute::Numbers(numbers) => Json::Array(numbers.iter().map(number).collect()),
        Attribute::Blobs(blobs) => Json::Array(blobs.iter().map(|blob| Json::String(STANDARD.encode(blob))).collect()),
    }
}

proptest! {
    #[test]
    fn any_item_reads_back_from_its_json(attribute in attributes()) {
        let item = Item::from([("a".to_owned(), attribute.clone())]);
        let read: serde_json::Value = serde_json::from_str(&json(&item).expect("spelled")).expect("JSON");
        prop_assert_eq!(&read["a"], &seen(&attribute));
    }
}
