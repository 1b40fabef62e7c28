//! What the statements of a lane mean: its locks, its offset, its lease.

use super::{Params, given, has, ones, picked};
use crate::simulator::postgres::{
    exec::{Exec, Inserted, OnConflict, Stop},
    locks::WaitFor,
    own::offsets,
    session::Answer,
    store::RowLock,
    value::Value,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    Lock { shared: bool },
    Advance,
    Holds,
    HasLease,
    Claim,
}

pub async fn run(lane: Lane, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let own = [(offsets::pipeline, 0), (offsets::topic, 1), (offsets::part, 2)];
    let of = |exec: &Exec<'_>, more: &[(usize, usize)]| {
        let wanted = given(params, &[&own, more].concat());
        ones(exec.rows(offsets::ID, has(&wanted)).len())
    };
    match lane {
        Lane::Lock { shared } => lock(exec, params[0].ints(), shared).await,
        Lane::Advance => advance(exec, given(params, &own), params).await,
        Lane::Holds => Ok(of(exec, &[(offsets::log_epoch, 3), (offsets::lease_epoch, 4)])),
        Lane::HasLease => Ok(of(exec, &[(offsets::lease_epoch, 3)])),
        Lane::Claim => claim(exec, params).await,
    }
}

async fn lock(exec: &mut Exec<'_>, keys: &[i64], shared: bool) -> Result<Answer, Stop> {
    for key in keys {
        if exec.pg.weakness().no_lane_lock {
            continue;
        }
        let taken = exec.pg.store().locks.acquire(exec.tx, *key, shared);
        while !taken && !exec.pg.store().locks.has(exec.tx, *key) {
            exec.wait(WaitFor::Advisory(*key)).await?;
        }
        exec.pg.store().note_advisory(exec.tx, *key, shared);
    }
    Ok(Answer::rows(vec![vec![Value::text("")]; keys.len()]))
}

async fn advance(exec: &mut Exec<'_>, mut wanted: Vec<(usize, Value)>, params: Params<'_>) -> Result<Answer, Stop> {
    let weak = exec.pg.weakness();
    let owned = [(offsets::log_epoch, 3), (offsets::lease_epoch, 4), (offsets::next_offset, 5)];
    if !weak.offset_unchecked {
        wanted.extend(given(params, &owned));
    }
    let now = exec.pg.now_us();
    let set = |row: &mut Vec<Value>| {
        row[offsets::next_offset] = params[6].value();
        if !params[7].value().is_null() {
            row[offsets::position] = params[7].value();
        }
        for (column, param) in [(offsets::clock, 8), (offsets::newest_commit_us, 9)] {
            row[column] = Value::Int(row[column].int().max(params[param].int()));
        }
        row[offsets::updated_at] = Value::Int(now);
    };
    if !weak.offset_outside_transaction {
        return Ok(ones(exec.update_where(offsets::ID, has(&wanted), set).await?.len()));
    }
    // As if a session of its own had committed it.
    let (tx, snapshot) = {
        let mut store = exec.pg.store();
        let session = store.tx(exec.tx).session;
        let tx = store.begin(session, now);
        let snapshot = store.snapshot(tx);
        store.hold_snapshot(&snapshot);
        (tx, snapshot)
    };
    let mut own = Exec::new(exec.pg, exec.control, tx, snapshot, exec.replica);
    let moved = own.update_where(offsets::ID, has(&wanted), set).await;
    exec.pg.store().drop_snapshot(&snapshot);
    exec.pg.commit_of(tx);
    Ok(ones(moved?.len()))
}

async fn claim(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let mut row = vec![Value::Int(0); offsets::NAMES.len()];
    for (column, value) in given(
        params,
        &[
            (offsets::pipeline, 0),
            (offsets::topic, 1),
            (offsets::part, 2),
            (offsets::log_epoch, 3),
            (offsets::lease_epoch, 4),
        ],
    ) {
        row[column] = value;
    }
    row[offsets::position] = Value::Null;
    row[offsets::updated_at] = Value::Int(exec.pg.now_us());
    let unchecked = exec.pg.weakness().offset_unchecked;
    let set = |old: &[Value]| {
        (unchecked || old[offsets::lease_epoch] <= row[offsets::lease_epoch]).then(|| {
            let mut new = old.to_vec();
            if old[offsets::log_epoch] != row[offsets::log_epoch] {
                new[offsets::next_offset] = Value::Int(0);
            }
            for column in [offsets::lease_epoch, offsets::log_epoch, offsets::updated_at] {
                new[column] = row[column].clone();
            }
            new
        })
    };
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    let rows = match exec.insert(offsets::ID, row.clone(), conflict).await? {
        Inserted::Fresh(row) | Inserted::Updated(row) => vec![row],
        Inserted::Skipped => Vec::new(),
    };
    Ok(picked(rows, &[offsets::next_offset, offsets::position, offsets::clock]))
}
