//! The events of a pipeline as a file of JSON lines beside the embedded log.
//!
//! What enters are numbered events; what leaves is `events.jsonl`, one event a line, for `tail -F` and log shippers.
//! Invariants: `append` answers after the sync; a line is whole or, after a crash, the last one and cut off by the next
//! append. The file's size is bounded: a full one becomes `events.1.jsonl`, and the one that had that name goes.
//! Deliberately absent: reading. The target has the events too, and `cutover status --events` reads them there.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use crate::observe::{EventSink, EventSinkError, NumberedEvent};

const NAME: &str = "events.jsonl";
const OLDER: &str = "events.1.jsonl";
/// A file that would grow beyond this is set aside.
const BYTES_MAX: u64 = 16 << 20;

/// The events file in one pipeline's folder.
#[derive(Debug, Clone)]
pub struct EventFile {
    folder: PathBuf,
    bytes_max: u64,
}

impl EventFile {
    /// The file in this folder, which is made when the first event comes.
    pub fn new(folder: PathBuf) -> Self {
        EventFile { folder, bytes_max: BYTES_MAX }
    }
}

#[async_trait]
impl EventSink for EventFile {
    async fn append(&self, events: &[NumberedEvent]) -> Result<(), EventSinkError> {
        let lines: String = events.iter().map(|event| event.line() + "\n").collect();
        let (folder, bytes_max) = (self.folder.clone(), self.bytes_max);
        let written = tokio::task::spawn_blocking(move || write(&folder, bytes_max, lines.as_bytes())).await;
        let failed = |reason: String| EventSinkError { place: self.folder.join(NAME).display().to_string(), reason };
        written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

/// Opened anew each time: events are seldom, and a file that someone has moved away is simply begun again.
fn write(folder: &Path, bytes_max: u64, lines: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = folder.join(NAME);
    let mut file = open(&path)?;
    let mut bytes = cut_torn_line(&mut file)?;
    if bytes > 0 && bytes + lines.len() as u64 > bytes_max {
        fs::rename(&path, folder.join(OLDER))?;
        file = open(&path)?;
        bytes = 0;
    }
    file.seek(SeekFrom::End(0))?;
    file.write_all(lines)?;
    file.sync_data()?;
    // A new name is durable with its folder.
    if bytes == 0 { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Removes what a crash left of a line that was being written; the file's length then. Its event comes again.
fn cut_torn_line(file: &mut File) -> io::Result<u64> {
    const BLOCK: u64 = 4096;
    let length = file.metadata()?.len();
    let (mut end, mut block) = (length, Vec::new());
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.clear();
        file.seek(SeekFrom::Start(start))?;
        (&*file).take(end - start).read_to_end(&mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length {
        file.set_len(end)?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: i64) -> NumberedEvent {
        NumberedEvent { id: format!("id-{sequence}"), sequence, body: "{\"event\":\"conflict\"}".into() }
    }

    fn sequences(path: &Path) -> Vec<i64> {
        let text = fs::read_to_string(path).expect("a file");
        text.lines()
            .map(|line| {
                let event: serde_json::Value = serde_json::from_str(line).expect("a whole line");
                event["sequence"].as_i64().expect("a number")
            })
            .collect()
    }

    #[tokio::test]
    async fn a_line_that_a_crash_tore_is_cut_off_and_comes_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = EventFile::new(folder.path().join("cart"));
        file.append(&[event(1), event(2)]).await.expect("written");
        let path = folder.path().join("cart").join(NAME);
        let torn = fs::read_to_string(&path).expect("text") + &event(3).line()[..20];
        fs::write(&path, torn).expect("written");
        file.append(&[event(3)]).await.expect("written");
        assert_eq!(sequences(&path), [1, 2, 3]);
        fs::write(&path, "x".repeat(10_000)).expect("written");
        file.append(&[event(4)]).await.expect("written");
        assert_eq!(sequences(&path), [4], "no whole line was there");
    }

    #[tokio::test]
    async fn two_files_of_a_bounded_size_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let line_bytes = event(10).line().len() as u64 + 1;
        let file = EventFile { folder: folder.path().to_owned(), bytes_max: 2 * line_bytes };
        for sequence in 10..17 {
            file.append(&[event(sequence)]).await.expect("written");
        }
        assert_eq!(sequences(&folder.path().join(NAME)), [16]);
        assert_eq!(sequences(&folder.path().join(OLDER)), [14, 15]);
        let kept = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(kept, 2);
    }
}
