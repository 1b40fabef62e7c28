//! What the fuzz target runs, here so that a unit test replays its corpus without the fuzzer.

use super::{Cell, Frame, Message, Old};

/// The bytes are the payload of a `CopyData`.
pub fn message(bytes: &[u8]) {
    let Ok(Frame::Data { message }) = Frame::decode(bytes) else { return };
    let Ok(decoded) = Message::decode(message) else { return };
    let values = match &decoded {
        Message::Insert { new, .. } => bytes_of(new),
        Message::Update { old, new, .. } => bytes_of(new) + old.as_ref().map_or(0, old_bytes),
        Message::Delete { old, .. } => old_bytes(old),
        Message::Relation(relation) => relation.columns.iter().map(|column| column.name.len() + 9).sum(),
        Message::Truncate { relations } => relations.len() * 4,
        Message::Begin { .. }
        | Message::Commit { .. }
        | Message::Origin { .. }
        | Message::Type { .. }
        | Message::Logical { .. } => 0,
    };
    assert!(values <= message.len(), "a message holds what it is made of");
    // A byte too many or too few is never overlooked.
    let mut longer = message.to_vec();
    longer.push(0);
    assert!(Message::decode(&longer).is_err());
    let shorter = message.split_last().map_or(message, |(_, shorter)| shorter);
    assert!(Message::decode(shorter).is_err());
}

fn old_bytes(old: &Old<'_>) -> usize {
    match old {
        Old::Key(cells) | Old::Full(cells) => bytes_of(cells),
    }
}

fn bytes_of(cells: &[Cell<'_>]) -> usize {
    let bytes = |cell: &Cell<'_>| match cell {
        Cell::Null | Cell::Unchanged => 1,
        Cell::Text(text) => 5 + text.len(),
    };
    cells.iter().map(bytes).sum()
}
