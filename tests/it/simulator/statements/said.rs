//! What the model says to the scripts.

use std::sync::Arc;

use cutover::database::postgres::Address;

use super::{cascades, checkpoints, events, letters, replays, requests, status, verifications};
use crate::simulator::postgres::{NoFaults, Postgres};

/// A model without tables of the user.
fn model() -> (Arc<Postgres>, Address) {
    let pg = Postgres::new(Vec::new(), Arc::new(NoFaults));
    let target = Address::parse("postgresql://cutover@localhost/model").unwrap().through(pg.clone());
    (pg, target)
}

macro_rules! says {
    ($($test:ident: $script:ident = $said:expr;)*) => {
        $(
            #[tokio::test(start_paused = true)]
            async fn $test() {
                let (pg, target) = model();
                let lines = $script(target).await;
                pg.check();
                assert_eq!(lines, $said);
            }
        )*
    };
}

says! {
    requests_are_asked_and_answered: requests = [
        "(1, 2)",
        r#"open requests: (1 resnapshot users {"subject":"users"}) (2 dlq retry  {"aa":"é","b":null,"ids":[2,1]})"#,
        r#"[Request { id: 1, command: Ok(Resnapshot), subject: "users", arguments: Object {"subject": String("users")} }, Request { id: 2, command: Ok(RetryDeadLetters), subject: "", arguments: Object {"aa": String("é"), "b": Null, "ids": Array [Number(2), Number(1)]} }]"#,
        r#"[(Done, "queued; \"soon\""), (New, "")]"#,
        "[2]",
        "answer request: 0",
        r#"(Some(1709210096000000), "2024-02-29T12:34:56Z")"#,
        r#"(Some(1709204696250000), "2024-02-29T11:04:56Z")"#,
        r#"(Some(-1000000), "1969-12-31T23:59:59Z")"#,
        r#"(None, "1970-01-01T00:00:00Z")"#,
    ];
    checkpoints_name_what_the_target_has: checkpoints = [
        r#"Err("nothing is applied yet; start the worker with `cutover run` first")"#,
        "claim: (0 null 0)",
        "claim: (0 null 0)",
        "claim: (0 null 0)",
        "advance: (1)",
        "advance: (1)",
        "note transforms: 1",
        "note transforms: 0",
        "note transforms: 1",
        "note transforms: 1",
        "note transforms: 1",
        r#"transforms in force: ([{"changes":[],"snapshot":[]},3] [1]) ([{"changes":[],"snapshot":[]},3] [2])"#,
        "[3, 3, 40]",
        "Ok((Offsets { changes: [5, 7], snapshot: [0, 0] }, 40))",
        "Ok((Offsets { changes: [5, 7], snapshot: [0, 0] }, 40))",
        r#"Err("there is a checkpoint `b` already; choose another name")"#,
        r#"[("a", 20, Some(Postgres(PostgresPosition { lsn: Lsn(40), system: "1", timeline: 1, slot: "s" }))), ("b", 20, Some(Postgres(PostgresPosition { lsn: Lsn(40), system: "1", timeline: 1, slot: "s" })))]"#,
        r#"positions: ({"lsn":"0/28","slot":"s","source":"postgres","system":"1","timeline":1}) ({"lsn":"0/32","slot":"s","source":"postgres","system":"1","timeline":1})"#,
        r#"lane seen: (7 {"lsn":"0/28","slot":"s","source":"postgres","system":"1","timeline":1} 40)"#,
        "lanes are fresh: 1",
        "fence: 1",
        r#"{"shop.users": 3}"#,
        "register tables: 1",
        "add chunk: 1",
        "claim: (0 null 0)",
        "begin log: 0",
        "claim: (0 null 0)",
        "chunks: (1 null null false)",
        "begin log: 1",
        "claim: (0 null 0)",
        "claim: (9 null 0)",
        "chunks: (1 null null false)",
        "begin log: 1",
        "claim: (9 null 0)",
        "claim: (0 null 0)",
        "chunks: (1 null null true)",
        "begin log: 0",
        "lanes begin: 2",
        "lanes begin: 0",
        "(changes 0 true 5 40 450)",
        "(changes 1 false 0 60 0)",
        "(changes 2 false 0 60 0)",
        "(snapshot 0 false 9 0 0)",
    ];
    status_tells_of_lease_and_tables: status = [
        "draw number: (1)",
        "(Lease { epoch: 1 }, Lease { epoch: 2 }, None, 4)",
        "lease state: (2 true true)",
        "mark leader: 1",
        "mark leader as applying: 1",
        "mark leader as applying: 1",
        "lease state: (2 true false)",
        "blocks leader: ",
        "blocks leader: (host:2 true)",
        "members: (host:2 {})",
        "register tables: 2",
        "copying: 1",
        r#"((Copying, true, [TableStatus { table: "users", rows: 10, copied: 0, applied: 5, state: Copying }, TableStatus { table: "items", rows: 0, copied: 0, applied: 0, state: Pending }], 0, 0), (false, false), [ApplierStatus { process: "host:2", partitions: [1] }], false)"#,
        "claim: (0 null 0)",
        "advance: (1)",
        "dead letters: 1",
        "follow only: 2",
        "script ran: 1",
        r#"((Following, true, [TableStatus { table: "users", rows: 0, copied: 0, applied: 5, state: Copied }, TableStatus { table: "items", rows: 0, copied: 0, applied: 0, state: Copied }], 0, 1), (true, true), [ApplierStatus { process: "host:2", partitions: [1] }], false)"#,
        r#"((Following, false, [TableStatus { table: "users", rows: 0, copied: 0, applied: 5, state: Copied }, TableStatus { table: "items", rows: 0, copied: 0, applied: 0, state: Copied }], 0, 1), (true, true), [ApplierStatus { process: "host:2", partitions: [1] }], false)"#,
    ];
    events_are_numbered_and_carried: events = [
        "queue events: 2",
        "tell events: 0",
        "tell events: 0",
        "tell events: 0",
        "tell events: 1",
        r#"(Some("told"), Some("3"))"#,
        r#"events to carry: (id 1 {"event":"phase_changed","from":null,"halted":null,"pipeline":"sim","to":"a","ts_ms":1709210096000}) (id 2 {"event":"phase_changed","from":null,"halted":null,"pipeline":"sim","to":"b","ts_ms":1709210096000})"#,
        "events carried: 2",
        r#"events to carry: (id 3 {"ts_ms":0})"#,
        r#"[(2, "{\"ts_ms\":1709210096000,\"pipeline\":\"sim\",\"event\":\"phase_changed\",\"from\":null,\"to\":\"b\",\"halted\":null}", "2024-02-29 12:34:56"), (3, "{\"ts_ms\": 0}", "1970-01-01 00:00:00")]"#,
        "events carried: 1",
        r#"events after: (id 2 {"event":"phase_changed","from":null,"halted":null,"pipeline":"sim","to":"b","ts_ms":1709210096000} 2024-02-29 12:34:56) (id 3 {"ts_ms":0} 1970-01-01 00:00:00)"#,
        "register tables: 1",
        "seen tables: (users 1 pending 0 0 time)",
        "copying: 1",
        "finish copy: 1",
        "seen tables: (users 1 copied 10 0 time)",
    ];
    dead_letters_are_listed_and_closed: letters = [
        "schema: 1",
        "dead letters: 1",
        "dead letters: 1",
        "dead letters: 1",
        r#"[(3, "shop.users", "{\"id\": 1}", 1, 7, "open", (20, false))]"#,
        r#"[(1, "shop.users", "{\"id\": 1}", 1, 5, "open", (20, false)), (2, "shop.users", "{\"id\": 2}", 1, 6, "open", (20, false)), (3, "shop.users", "{\"id\": 1}", 1, 7, "open", (20, false))]"#,
        "[]",
        "(1, 0)",
        r#"[(1, "shop.users", "{\"id\": 1}", 1, 5, "open", (20, false)), (3, "shop.users", "{\"id\": 1}", 1, 7, "open", (20, false))]"#,
        r#"[(2, "shop.users", "{\"id\": 2}", 1, 6, "discarded", (20, false))]"#,
        r#"Some(((2, "shop.users", "{\"id\": 2}", 1, 6, "discarded", (20, false)), "{\"a\": 1}"))"#,
        "true",
        "[5, 7]",
        "renew dead letters: 1",
        "wait: 1",
        "retried dead letters: (1 2 true) (3 1 true)",
        r#"[(1, "shop.users", "{\"id\": 1}", 2, 9, "open", (20, true)), (3, "shop.users", "{\"id\": 1}", 1, 7, "open", (20, false))]"#,
    ];
    cascades_are_stored_and_come_to_their_end: cascades = [
        "store cascades: 4",
        r#"next cascades: (shop.orders gone {"user_id":2} 4 0 false) (shop.orders gone {"user_id":1} 7 0 false)"#,
        "store cascades: 0",
        "store cascades: 2",
        "count cascades: (5)",
        "end cascades: 0",
        "end cascades: 1",
        r#"next cascades: (shop.parts gone {"order_id":1} 3 0 false)"#,
        r#"next cascades: (shop.parts gone {"order_id":1} 3 0 false)"#,
        "hold cascades: 1",
        r#"next cascades: (shop.parts gone {"order_id":1} 3 0 false)"#,
        r#"next cascades: (shop.parts gone {"order_id":1} 3 0 false)"#,
        "hold cascades: 1",
        "end cascades: 1",
        r#"next cascades: (shop.parts gone {"order_id":1} 3 0 false)"#,
        "end cascades: 1",
        "next cascades: ",
        r#"next cascades: (shop.orders gone {"user_id":2} 4 0 true) (shop.orders gone {"user_id":1} 8 0 false)"#,
        "add cascades: 2",
        "add cascades: 1",
        r#"next cascades: (shop.parts gone {"order_id":4} 2 1 false)"#,
        "store cascades: 1",
        r#"next cascades: (shop.parts gone {"order_id":4} 2 1 false)"#,
        "dead letters: 1",
        "dead letters: 1",
        "dead letters: 1",
        "wait: 3",
        r#"parked children: ({"id":1} {"a":1} 7) ({"id":2} {"b":1} 8) ({"id":3} {"b":2} 2)"#,
        r#"parked children: ({"id":1} {"a":1} 7) ({"id":2} {"a":1} 6) ({"id":3} {"b":2} 2)"#,
        r#"parked children: ({"id":2} {"b":1} 8)"#,
        "parked children: ",
    ];
    comparisons_ask_what_they_need_to_know: verifications = [
        "((true, false), true, true)",
        "(true, false)",
        "lock verify: (false)",
        "lock verify: (true)",
        "verifies still: (false)",
        "anybody verifies: (true)",
        "anybody verifies: (false)",
        "true",
        "claim: (0 null 0)",
        "claim: (0 null 0)",
        "claim: (0 null 0)",
        "advance: (1)",
        "advance: (1)",
        "advance: (1)",
        r#"reached: ({"lsn":"0/28","slot":"s","source":"postgres","system":"1","timeline":1} 40) ({"lsn":"0/32","slot":"s","source":"postgres","system":"1","timeline":1} 50) ({"lsn":"0/32","slot":"s","source":"postgres","system":"1","timeline":1} 50)"#,
        r#"(Some((40, Postgres(PostgresPosition { lsn: Lsn(40), system: "1", timeline: 1, slot: "s" }))), true)"#,
        "None",
        "note transforms: 1",
        "note transforms: 1",
        r#"Some("i")"#,
        "dead letters: 1",
        "dead letters: 1",
        "dead letters: 1",
        "wait: 3",
        r#"parked rows: ({"id":1} open) ({"id":2} discarded) ({"id":2} waits) ({"id":4} waits)"#,
        r#"parked rows: ({"id":1} waits)"#,
        "parked rows: ",
        "tell of an event: 1",
        "tell of an event: 0",
        "tell of an event: 1",
        r#"events to carry: (id 1 {"ts_ms":0}) (id 2 {"ts_ms":0})"#,
    ];
    replays_begin_and_end: replays = [
        "false",
        "false",
        "note rows: 1",
        "begin replay: 1",
        "begin replay: 23505",
        "true",
        "claim: (0 null 0)",
        "advance: (1)",
        r#"Some((7, "running", "first", "", 6, 0))"#,
        "resume replay: 1",
        "note rows: 1",
        "note rows: 0",
        "note rows: 1",
        "count noted rows: (2)",
        "forget noted rows: 0",
        "forget noted rows: 1",
        r#"[(2, "shop.users", "{\"id\": 1}", 1, 7, "replay", (20, false))]"#,
        "begin replay: 1",
        "count noted rows: (0)",
        r#"Some((7, "running", "second", "", 0, 0))"#,
        "end replay: 1",
        r#"(Some((7, "done", "second", "replayed", 22, 0)), true)"#,
        "false",
        "begin replay: 1",
    ];
}
