//! What is wrong where the worker runs: a port, a disk, a script.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Pipeline, SYNC_LIMIT, end_of, stop};
use crate::support::eventually;

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_both_ways_to_choose_another() {
    let pipeline = Pipeline::small().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    pipeline.configure("127.0.0.1:0", &address);
    let words = ["cannot listen on", address.as_str(), "--listen", "[http] listen"];
    pipeline.check().await.expect(1, &words).expect(1, &["fix: "]);
    pipeline.command(&["run"]).await.expect(3, &words);
    drop(taken);
    pipeline.recovered().await;

    // What holds it may be this pipeline's own worker, beside which `check` is content.
    let worker = pipeline.work.start(&[]);
    pipeline.eventually_status(&["\"synced\":true"]).await;
    pipeline.configure(&address, worker.listen());
    pipeline.check().await.expect(0, &["ready: "]);
    stop(worker).await.expect(0, &[]);
}

#[tokio::test]
async fn a_log_folder_that_cannot_be_made_is_named() {
    let pipeline = Pipeline::small().await;
    pipeline.work.configure_also("[log]\nurl = \"file:cutover.toml/log\"\n");
    pipeline.refused(&["cutover.toml/log", "the right to read and write it"]).await;
    pipeline.configure("file:cutover.toml/log", "file:log");
    pipeline.recovered().await;
}

#[tokio::test]
async fn a_script_after_the_copy_that_fails_halts_and_the_stream_goes_on() {
    let pipeline = Pipeline::small().await;
    pipeline.configure("[target]", "[target]\nafter_copy = \"after.sql\"");
    pipeline.check().await.expect(1, &["after.sql, which cannot be read", "fix: correct the path"]);
    let script = pipeline.work.path().join("after.sql");
    fs::write(&script, "CREATE INDEX by_v ON t (v);\nUPDATE t\n  SET w = 1;\n").unwrap();
    pipeline.check().await.expect(0, &[]);
    let words = [
        "halted: ",
        "after.sql:3:7: column \"w\" of relation \"t\" does not exist",
        "nothing of it was kept",
        "correct the script",
    ];
    pipeline.synced().await.expect(3, &words);

    let worker = pipeline.work.start(&[]);
    pipeline.eventually_status(&["\"worker_running\":true", "\"halted\":{", "after.sql"]).await;
    let (status, why) = worker.get("/readyz").await.unwrap();
    assert!(status == 503 && why.contains("halted") && why.contains("after.sql"), "{status} {why}");
    pipeline.command(&["status"]).await.expect(0, &["HALTED", "to do", "correct the script"]);
    pipeline.source.exec("INSERT INTO t VALUES (4, 'while it is halted')").await;
    eventually("the stream goes on", Duration::from_secs(60), async || {
        pipeline.target.value("SELECT count(*) FROM t").await.as_deref() == Some("4")
    })
    .await;
    assert_eq!(pipeline.target.value("SELECT to_regclass('by_v')").await, None, "nothing of it was kept");
    stop(worker).await.expect(0, &[]);

    fs::write(&script, "CREATE INDEX by_v ON t (v);\n").unwrap();
    pipeline.recovered().await;
    assert_eq!(pipeline.target.value("SELECT to_regclass('by_v')").await.as_deref(), Some("by_v"));
}

/// A file system of a few megabytes; unmounted when dropped.
struct TinyDisk(PathBuf);

impl TinyDisk {
    /// None where this process may not mount anything.
    fn mount(path: &Path, megabytes: u32) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for TinyDisk {
    fn drop(&mut self) {
        let _busy = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_waited_for_and_nothing_is_lost() {
    let pipeline = Pipeline::small().await;
    let folder = pipeline.work.path().join("disk");
    let Some(disk) = TinyDisk::mount(&folder, 32) else {
        eprintln!("SKIPPED: no file system may be mounted here, so that no disk can be full");
        return;
    };
    pipeline.work.configure_also("[log]\nurl = \"file:disk/log\"\n");
    let mut worker = pipeline.work.start(&[]);
    pipeline.eventually_status(&["\"synced\":true"]).await;

    // Something else fills the disk; the source goes on.
    let ballast = folder.join("ballast");
    let filled = fs::write(&ballast, vec![1; 40 << 20]).unwrap_err();
    assert_eq!(filled.kind(), std::io::ErrorKind::StorageFull);
    for id in 10..40 {
        pipeline
            .source
            .exec(&format!(
                "INSERT INTO t VALUES ({id}, repeat('x', 40)); UPDATE t SET v = 'updated' WHERE id = {id} - 5"
            ))
            .await;
    }
    pipeline.eventually_status(&["\"retrying\":{\"capture\":", "disk/log", "free space there"]).await;
    let (status, why) = worker.get("/readyz").await.unwrap();
    assert!(status == 503 && why.contains("capture is retrying") && why.contains("free space there"), "{status} {why}");
    pipeline.check().await.expect(1, &["disk/log", "free space", "fix: "]);
    assert!(worker.is_running());
    // A worker that starts on a full disk waits as well, or says why not; nothing of the log is harmed.
    worker.kill9().await;
    let mut worker = pipeline.work.start(&["--until-synced"]);
    eventually("the new worker says so too", Duration::from_secs(20), async || {
        worker.stderr().contains("free space there")
    })
    .await;
    assert!(worker.is_running(), "{}", worker.stderr());
    fs::remove_file(&ballast).unwrap();
    end_of(&mut worker, SYNC_LIMIT).await.expect(0, &["free space there"]);
    pipeline.assert_equal().await;
    drop(disk);
}

#[tokio::test]
async fn a_disk_that_fills_up_in_the_middle_of_a_transaction_loses_nothing_of_it() {
    let pipeline = Pipeline::small().await;
    let folder = pipeline.work.path().join("disk");
    let Some(disk) = TinyDisk::mount(&folder, 64) else {
        eprintln!("SKIPPED: no file system may be mounted here, so that no disk can be full");
        return;
    };
    pipeline.work.configure_also("[log]\nurl = \"file:disk/log\"\n");
    let worker = pipeline.work.start(&[]);
    pipeline.eventually_status(&["\"synced\":true"]).await;

    // Room for the beginning.
    let ballast = folder.join("ballast");
    fs::write(&ballast, vec![1; 80 << 20]).unwrap_err();
    let file = fs::File::options().write(true).open(&ballast).unwrap();
    file.set_len(file.metadata().unwrap().len() - (4 << 20)).unwrap();
    // While it is open its room stays taken.
    drop(file);
    let rows: Vec<String> = (1_000..41_000).map(|id| format!("({id}, 'row {id}')")).collect();
    pipeline.source.exec(&format!("INSERT INTO t VALUES {}", rows.join(", "))).await;
    pipeline.eventually_status(&["\"retrying\":{\"capture\":", "disk/log", "free space there"]).await;
    fs::remove_file(&ballast).unwrap();
    // The status may be from before: only the rows tell.
    let all = async || pipeline.target.value("SELECT count(*) FROM t").await.as_deref() == Some("40003");
    eventually("the transaction is there", Duration::from_secs(60), all).await;
    pipeline.assert_equal().await;
    stop(worker).await.expect(0, &[]);
    drop(disk);
}
