//! What the statements on cutover's own tables mean.

use super::{
    exec::{Exec, Inserted, OnConflict, Stop},
    faults::SessionInfo,
    letters,
    own::{chunks, dead_letters, fences, lease, notes, offsets, schemas, tables, waiting},
    session::Answer,
    store::{RowLock, TableId},
    value::{Param, Row, Value},
};

/// `'-infinity'`.
const NEVER: i64 = i64::MIN;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Lock { shared: bool },
    Advance,
    Holds,
    HasLease,
    Claim,
    Mark,
    HeldDead,
    HeldWaiting,
    Records,
    Definition,
    Waiting,
    Schema,
    Fence,
    RaiseFence,
    FenceDead,
    FenceWaiting,
    Chunk,
    ClearDead,
    ClearWaiting,
    Dead,
    CountDead,
    OpenLetters,
    Supersede,
    RenewLetters,
    Wait,
    Note,
    SetNote,
    AddSchema,
    Schemas,
    NewestCommits,
    NextOffsets,
    Position,
    RegisterTables,
    ForgetTables,
    ForgetChunks,
    QueueCopy,
    QueueBegun,
    NotAgain,
    CopiesLeft,
    AdvanceSnapshot,
    Unfinished,
    Copying,
    Chunks,
    AddChunk,
    Finish,
    DropChunks,
    Alone,
    Waits,
    LeaseRow,
    LeaseTake,
    LeaseHolder,
    EndPredecessor,
    Renew,
    Release,
}

pub type Params<'p> = &'p [Param];

/// Whether the row has these values in these columns.
pub fn has<'p>(wanted: &'p [(usize, Value)]) -> impl Fn(&[Value]) -> bool + Send + Sync + 'p {
    move |row| wanted.iter().all(|(column, value)| row[*column] == *value)
}

/// Pairs of column and parameter, by place.
pub fn given(params: Params<'_>, columns: &[(usize, usize)]) -> Vec<(usize, Value)> {
    columns.iter().map(|(column, param)| (*column, params[*param].value())).collect()
}

pub fn picked(rows: Vec<Row>, columns: &[usize]) -> Answer {
    let pick = |row: Row| columns.iter().map(|column| row[*column].clone()).collect();
    Answer::rows(rows.into_iter().map(pick).collect())
}

fn ones(rows: usize) -> Answer {
    Answer::rows(vec![vec![Value::Int(1)]; rows])
}

pub async fn run(state: State, exec: &mut Exec<'_>, info: &SessionInfo, params: Params<'_>) -> Result<Answer, Stop> {
    match state {
        State::Lock { shared } => lock(exec, params[0].ints(), shared).await,
        State::Advance | State::Holds | State::HasLease | State::Claim => lane(state, exec, params).await,
        State::CountDead | State::OpenLetters | State::Supersede | State::RenewLetters => {
            letters::run(state, exec, params).await
        }
        State::Mark | State::HeldDead | State::HeldWaiting | State::Records | State::Waiting => {
            Ok(set_aside(state, exec, params))
        }
        State::Schema | State::AddSchema => schema(state, exec, params).await,
        State::Fence => set_fence(exec, params).await,
        State::RaiseFence => {
            let mut wanted = given(params, &[(lease::pipeline, 0), (lease::epoch, 3)]);
            wanted.push((lease::role, Value::text("worker")));
            let held = !exec.rows(lease::ID, has(&wanted)).is_empty();
            if held { set_fence(exec, &params[..3]).await } else { Ok(Answer::affected(0)) }
        }
        State::FenceDead => {
            let mut wanted = given(params, &[(dead_letters::pipeline, 0), (dead_letters::source_table, 1)]);
            wanted.push((dead_letters::state, Value::text("open")));
            let (same, version) = (has(&wanted), params[2].int());
            let older = |row: &[Value]| same(row) && row[dead_letters::version].int() < version;
            Ok(Answer::affected(exec.delete_where(dead_letters::ID, older).await?.len()))
        }
        State::FenceWaiting => {
            let wanted = given(params, &[(waiting::pipeline, 0), (waiting::source_table, 1)]);
            let (same, version) = (has(&wanted), params[2].int());
            let older = |row: &[Value]| same(row) && row[waiting::version].int() < version;
            Ok(Answer::affected(exec.delete_where(waiting::ID, older).await?.len()))
        }
        State::ClearDead => {
            let open = |row: &[Value]| row[dead_letters::state] == Value::text("open");
            let key = [dead_letters::source_table, dead_letters::key_text, dead_letters::version];
            clear(exec, dead_letters::ID, dead_letters::pipeline, key, params, open).await
        }
        State::ClearWaiting => {
            let key = [waiting::source_table, waiting::key_text, waiting::version];
            clear(exec, waiting::ID, waiting::pipeline, key, params, |_| true).await
        }
        State::Dead => store_dead(exec, params).await,
        State::Wait => store_waiting(exec, params).await,
        State::Definition
        | State::Note
        | State::Schemas
        | State::NewestCommits
        | State::NextOffsets
        | State::Position => Ok(read(state, exec, params)),
        State::SetNote => {
            let mut row: Vec<Value> = params.iter().map(Param::value).collect();
            row.push(Value::Int(exec.pg.now_us()));
            let set = |_: &[Value]| Some(row.clone());
            let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
            exec.insert(notes::ID, row.clone(), conflict).await?;
            Ok(Answer::affected(1))
        }
        State::QueueBegun => {
            let (pipeline, now) = (params[0].value(), Value::Int(exec.pg.now_us()));
            let all = params[1].value() == Value::Bool(true);
            let begun = |row: &[Value]| {
                let first = row[tables::generation].int() == 1;
                row[tables::pipeline] == pipeline && (row[tables::state] != Value::text("pending") || all && first)
            };
            let set = |row: &mut Vec<Value>| {
                row[tables::generation] = Value::Int(row[tables::generation].int() + 1);
                row[tables::state] = Value::text("pending");
                row[tables::bounds_done] = Value::Bool(false);
                row[tables::rows_copied] = Value::Int(0);
                row[tables::requested_at] = now.clone();
                row[tables::started_at] = Value::Null;
                row[tables::finished_at] = Value::Null;
            };
            Ok(Answer::affected(exec.update_where(tables::ID, begun, set).await?.len()))
        }
        State::Waits => {
            let wanted = given(params, &[(waiting::pipeline, 0), (waiting::part, 1)]);
            Ok(Answer::row(vec![Value::Bool(!exec.rows(waiting::ID, has(&wanted)).is_empty())]))
        }
        State::RegisterTables => register(exec, params).await,
        State::ForgetTables => forget(exec, tables::ID, params).await,
        State::ForgetChunks => forget(exec, chunks::ID, params).await,
        State::NotAgain | State::CopiesLeft | State::Unfinished | State::Chunks | State::Alone => {
            Ok(read_copies(state, exec, params))
        }
        State::QueueCopy | State::Copying | State::Finish | State::Chunk | State::DropChunks => {
            change_copies(state, exec, params).await
        }
        State::AddChunk => add_chunk(exec, params).await,
        State::AdvanceSnapshot => advance_snapshot(exec, params).await,
        State::LeaseRow | State::LeaseTake | State::LeaseHolder | State::Renew | State::Release => {
            lease_statement(state, exec, info, params).await
        }
        State::EndPredecessor => {
            let names = params[0].text_values();
            let ended = exec.pg.terminate(|other| {
                other.database == info.database
                    && other.user == info.user
                    && names.contains(&Value::text(&other.application_name))
            });
            Ok(Answer::rows(vec![vec![Value::Bool(true)]; ended]))
        }
    }
}

async fn lock(exec: &mut Exec<'_>, keys: &[i64], shared: bool) -> Result<Answer, Stop> {
    for key in keys {
        if exec.pg.weakness().no_lane_lock {
            continue;
        }
        let taken = exec.pg.store().locks.acquire(exec.tx, *key, shared);
        while !taken && !exec.pg.store().locks.has(exec.tx, *key) {
            exec.wait(super::locks::WaitFor::Advisory(*key)).await?;
        }
        exec.pg.store().note_advisory(exec.tx, *key, shared);
    }
    Ok(Answer::rows(vec![vec![Value::text("")]; keys.len()]))
}

/// The version before which the rows of a source table are gone.
pub fn fence(exec: &Exec<'_>, pipeline: &str, source: &str) -> Option<i64> {
    let (_, row) = exec.lookup(fences::ID, &[Value::text(pipeline), Value::text(source)])?;
    Some(row[fences::version].int())
}

async fn set_fence(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let row: Vec<Value> = params.iter().map(Param::value).collect();
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        new[fences::version] = row[fences::version].clone().max(old[fences::version].clone());
        Some(new)
    };
    let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
    exec.insert(fences::ID, row.clone(), conflict).await?;
    Ok(Answer::affected(1))
}

async fn lane(state: State, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let mut wanted = given(params, &[(offsets::pipeline, 0), (offsets::topic, 1), (offsets::part, 2)]);
    match state {
        State::Holds => wanted.extend(given(params, &[(offsets::log_epoch, 3), (offsets::lease_epoch, 4)])),
        State::HasLease => wanted.extend(given(params, &[(offsets::lease_epoch, 3)])),
        State::Advance => return advance(exec, wanted, params).await,
        State::Claim => return claim(exec, params).await,
        _ => unreachable!("{state:?} is no statement of the lane"),
    }
    Ok(ones(exec.rows(offsets::ID, has(&wanted)).len()))
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

fn set_aside(state: State, exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let mut open = given(params, &[(dead_letters::pipeline, 0)]);
    open.push((dead_letters::state, Value::text("open")));
    let mut dead = exec.rows(dead_letters::ID, has(&open));
    let mut rows = exec.rows(waiting::ID, has(&given(params, &[(waiting::pipeline, 0)])));
    match state {
        State::Mark => {
            let newest = dead.iter().map(letters::mark).max();
            Answer::row(vec![Value::Int(newest.unwrap_or(0))])
        }
        State::HeldDead => {
            dead.sort_by_key(letters::mark);
            if exec.pg.weakness().no_dead_letter_fence {
                let unfenced = |row: &Row| {
                    let mut row = row.to_vec();
                    row[dead_letters::version] = Value::Int(0);
                    Row::from(row)
                };
                dead = dead.iter().map(unfenced).collect();
            }
            let marked = dead.into_iter().map(|row| {
                let mut shown = vec![Value::Int(letters::mark(&row))];
                let columns = [dead_letters::source_table, dead_letters::key_text, dead_letters::version];
                shown.extend(columns.map(|column| row[column].clone()));
                shown
            });
            Answer::rows(marked.collect())
        }
        State::HeldWaiting => picked(rows, &[waiting::source_table, waiting::key_text, waiting::version]),
        State::Records => {
            let keys = params[1].text_values();
            let fenced = !exec.pg.weakness().no_dead_letter_fence;
            dead.retain(|row| fenced && keys.contains(&row[dead_letters::key_text]));
            rows.retain(|row| keys.contains(&row[waiting::key_text]));
            let mut found = picked(
                dead,
                &[
                    dead_letters::source_table,
                    dead_letters::key_text,
                    dead_letters::version,
                    dead_letters::schema_id,
                    dead_letters::record,
                ],
            );
            found.rows.extend(waiting_records(rows).rows);
            found.rows.sort_by_key(|row| row[2].int());
            Answer::rows(found.rows)
        }
        State::Waiting => {
            rows.retain(|row| row[waiting::part] == params[1].value());
            rows.sort_by_key(|row| (row[waiting::attempts].int(), row[waiting::version].int()));
            rows.truncate(usize::try_from(params[2].int()).unwrap_or(usize::MAX));
            waiting_records(rows)
        }
        _ => unreachable!("{state:?} reads nothing that is set aside"),
    }
}

fn waiting_records(rows: Vec<Row>) -> Answer {
    picked(rows, &[waiting::source_table, waiting::key_text, waiting::version, waiting::schema_id, waiting::value])
}

async fn clear(
    exec: &mut Exec<'_>,
    table: TableId,
    pipeline: usize,
    [source, key, version]: [usize; 3],
    params: Params<'_>,
    also: impl Fn(&[Value]) -> bool + Send + Sync,
) -> Result<Answer, Stop> {
    let (sources, keys, versions) = (params[1].text_values(), params[2].text_values(), params[3].ints());
    let wanted = |row: &[Value]| {
        row[pipeline] == params[0].value()
            && also(row)
            && (0..keys.len())
                .any(|at| row[source] == sources[at] && row[key] == keys[at] && row[version].int() <= versions[at])
    };
    Ok(Answer::affected(exec.delete_where(table, wanted).await?.len()))
}

pub fn next_id(exec: &Exec<'_>, table: TableId) -> Value {
    let mut store = exec.pg.store();
    store.tables[table].sequence += 1;
    Value::Int(store.tables[table].sequence)
}

async fn store_dead(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let [sources, keys, states, errors, records] = [3, 4, 8, 9, 10].map(|at: usize| params[at].text_values());
    let [versions, schemas, log_offsets] = [5, 6, 7].map(|at: usize| params[at].ints());
    let mut stored = 0;
    for at in 0..sources.len() {
        let row = vec![
            next_id(exec, dead_letters::ID),
            params[0].value(),
            sources[at].clone(),
            keys[at].clone(),
            Value::Int(versions[at]),
            Value::Int(schemas[at]),
            params[1].value(),
            params[2].value(),
            Value::Int(log_offsets[at]),
            states[at].clone(),
            errors[at].clone(),
            records[at].clone(),
            Value::Int(exec.pg.started_us(exec.tx)),
            Value::text("open"),
            Value::Int(1),
            Value::Null,
            Value::Null,
        ];
        let outcome = exec.insert(dead_letters::ID, row, OnConflict::Nothing).await?;
        stored += usize::from(outcome != Inserted::Skipped);
    }
    Ok(Answer::affected(stored))
}

async fn store_waiting(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let [sources, keys, values, reasons] = [2, 3, 6, 7].map(|at: usize| params[at].text_values());
    let [versions, schemas] = [4, 5].map(|at: usize| params[at].ints());
    for at in 0..sources.len() {
        let row = vec![
            params[0].value(),
            sources[at].clone(),
            keys[at].clone(),
            Value::Int(versions[at]),
            params[1].value(),
            Value::Int(schemas[at]),
            values[at].clone(),
            reasons[at].clone(),
            Value::Int(exec.pg.started_us(exec.tx)),
            Value::Int(0),
        ];
        let set = |old: &[Value]| {
            let mut new = old.to_vec();
            new[waiting::attempts] = Value::Int(old[waiting::attempts].int() + 1);
            new[waiting::reason] = reasons[at].clone();
            Some(new)
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
        exec.insert(waiting::ID, row, conflict).await?;
    }
    Ok(Answer::affected(sources.len()))
}

async fn schema(state: State, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let seq = next_id(exec, schemas::ID);
    let value = |at: usize| params[at].value();
    let row = match state {
        State::AddSchema => vec![value(0), value(1), value(2), value(3), seq, value(4)],
        _ => vec![value(0), value(1), Value::text(""), Value::Int(0), seq, value(2)],
    };
    let set = |old: &[Value]| {
        let mut new = old.to_vec();
        if old[schemas::clock] < row[schemas::clock] {
            new[schemas::clock] = row[schemas::clock].clone();
            new[schemas::seq] = row[schemas::seq].clone();
        }
        Some(new)
    };
    let conflict = match state {
        State::AddSchema => OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set },
        _ => OnConflict::Nothing,
    };
    let outcome = exec.insert(schemas::ID, row.clone(), conflict).await?;
    Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
}

fn read(state: State, exec: &Exec<'_>, params: Params<'_>) -> Answer {
    match state {
        State::Definition => {
            let wanted = given(params, &[(schemas::pipeline, 0), (schemas::id, 1)]);
            picked(exec.rows(schemas::ID, has(&wanted)), &[schemas::definition])
        }
        State::Note => {
            let wanted = given(params, &[(notes::pipeline, 0), (notes::key, 1)]);
            picked(exec.rows(notes::ID, has(&wanted)), &[notes::value])
        }
        State::Schemas => {
            let mut rows = exec.rows(schemas::ID, has(&given(params, &[(schemas::pipeline, 0)])));
            rows.sort_by_key(|row| (row[schemas::clock].int(), row[schemas::seq].int()));
            picked(rows, &[schemas::clock, schemas::definition])
        }
        State::NextOffsets => {
            let wanted = given(params, &[(offsets::pipeline, 0), (offsets::log_epoch, 1)]);
            let rows = exec.rows(offsets::ID, has(&wanted)).into_iter();
            let changes = |row: &Row| Value::Bool(row[offsets::topic] == Value::text("changes"));
            let rows =
                rows.map(|row| vec![changes(&row), row[offsets::part].clone(), row[offsets::next_offset].clone()]);
            Answer::rows(rows.collect())
        }
        State::NewestCommits | State::Position => {
            let mut wanted = given(params, &[(offsets::pipeline, 0)]);
            wanted.push((offsets::topic, Value::text("changes")));
            let mut rows = exec.rows(offsets::ID, has(&wanted));
            if state == State::NewestCommits {
                return picked(rows, &[offsets::part, offsets::newest_commit_us]);
            }
            rows.retain(|row| !row[offsets::position].is_null());
            rows.sort_by_key(|row| row[offsets::clock].int());
            rows.truncate(1);
            picked(rows, &[offsets::position, offsets::clock])
        }
        _ => unreachable!("{state:?} is no question"),
    }
}

async fn register(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let names = params[1].text_values();
    for (place, name) in names.iter().enumerate() {
        let place = Value::Int(place as i64 + 1);
        let mut row = vec![Value::Null; tables::NAMES.len()];
        for column in [tables::rows_estimate, tables::rows_copied, tables::not_before] {
            row[column] = Value::Int(0);
        }
        row[tables::pipeline] = params[0].value();
        row[tables::source_table] = name.clone();
        row[tables::generation] = Value::Int(1);
        row[tables::state] = Value::text("pending");
        row[tables::bounds_done] = Value::Bool(false);
        row[tables::position] = place.clone();
        row[tables::updated_at] = now.clone();
        let set = |old: &[Value]| {
            let mut new = old.to_vec();
            new[tables::position] = place.clone();
            Some(new)
        };
        let conflict = OnConflict::Update { index: 0, lock: RowLock::NoKeyUpdate, set: &set };
        exec.insert(tables::ID, row, conflict).await?;
    }
    Ok(Answer::affected(names.len()))
}

/// The first two columns of `tables` and of `chunks` are pipeline and source table.
async fn forget(exec: &mut Exec<'_>, table: TableId, params: Params<'_>) -> Result<Answer, Stop> {
    let (pipeline, kept) = (params[0].value(), params[1].text_values());
    let gone = |row: &[Value]| row[0] == pipeline && !kept.contains(&row[1]);
    Ok(Answer::affected(exec.delete_where(table, gone).await?.len()))
}

fn read_copies(state: State, exec: &Exec<'_>, params: Params<'_>) -> Answer {
    let own = given(params, &[(tables::pipeline, 0)]);
    let mut rows = exec.rows(tables::ID, has(&own));
    rows.sort_by_key(|row| (row[tables::position].int(), row[tables::source_table].clone()));
    let is = |row: &Row, state: &str| row[tables::state] == Value::text(state);
    match state {
        State::NotAgain => {
            rows.retain(|row| !(is(row, "pending") && row[tables::generation].int() > 1));
            picked(rows, &[tables::source_table])
        }
        State::CopiesLeft => {
            let unfinished = rows.iter().filter(|row| !is(row, "copied")).count() as i64;
            Answer::row(vec![Value::Int(rows.len() as i64), Value::Int(unfinished)])
        }
        State::Unfinished => {
            rows.retain(|row| !is(row, "copied"));
            picked(rows, &[tables::source_table, tables::generation, tables::bounds_done, tables::not_before])
        }
        State::Chunks => {
            let columns = [(chunks::pipeline, 0), (chunks::source_table, 1), (chunks::generation, 2)];
            let mut found = exec.rows(chunks::ID, has(&given(params, &columns)));
            found.sort_by_key(|row| row[chunks::chunk].int());
            let answer = |row: Row| {
                let done = Value::Bool(row[chunks::state] == Value::text("done"));
                vec![row[chunks::chunk].clone(), row[chunks::lower].clone(), row[chunks::upper].clone(), done]
            };
            Answer::rows(found.into_iter().map(answer).collect())
        }
        State::Alone => {
            let others = exec.rows(tables::ID, |row| row[tables::pipeline] != params[0].value());
            Answer::row(vec![Value::Bool(others.is_empty())])
        }
        _ => unreachable!("{state:?} reads nothing of copies"),
    }
}

async fn change_copies(state: State, exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let now = Value::Int(exec.pg.started_us(exec.tx));
    let mut wanted = given(params, &[(tables::pipeline, 0), (tables::source_table, 1)]);
    if state == State::DropChunks {
        return Ok(Answer::affected(exec.delete_where(chunks::ID, has(&wanted)).await?.len()));
    }
    if state == State::Chunk {
        wanted.extend(given(params, &[(chunks::generation, 2), (chunks::chunk, 3)]));
        let set = |row: &mut Vec<Value>| {
            row[chunks::state] = Value::text("applied");
            row[chunks::rows] = params[4].value();
        };
        return Ok(Answer::affected(exec.update_where(chunks::ID, has(&wanted), set).await?.len()));
    }
    if state != State::QueueCopy {
        wanted.extend(given(params, &[(tables::generation, 2)]));
    }
    if state == State::Finish {
        let same = given(params, &[(chunks::pipeline, 0), (chunks::source_table, 1), (chunks::generation, 2)]);
        let same = has(&same);
        let left = exec.rows(chunks::ID, |row| same(row) && row[chunks::state] != Value::text("done"));
        if !left.is_empty() {
            return Ok(Answer::affected(0));
        }
    }
    let set = |row: &mut Vec<Value>| match state {
        State::QueueCopy => {
            row[tables::generation] = Value::Int(row[tables::generation].int() + 1);
            row[tables::state] = Value::text("pending");
            row[tables::bounds_done] = Value::Bool(false);
            row[tables::rows_copied] = Value::Int(0);
            row[tables::requested_at] = now.clone();
            row[tables::started_at] = Value::Null;
            row[tables::finished_at] = Value::Null;
            row[tables::not_before] = Value::Int(row[tables::not_before].int().max(params[2].int()));
        }
        State::Copying => {
            row[tables::state] = Value::text("copying");
            row[tables::rows_estimate] = params[3].value();
            if row[tables::started_at].is_null() {
                row[tables::started_at] = now.clone();
            }
        }
        _ => {
            row[tables::state] = Value::text("copied");
            row[tables::finished_at] = now.clone();
        }
    };
    Ok(Answer::affected(exec.update_where(tables::ID, has(&wanted), set).await?.len()))
}

async fn add_chunk(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let value = |at: usize| params[at].value();
    let row = vec![
        value(0),
        value(1),
        value(2),
        value(3),
        value(4),
        value(5),
        Value::Int(0),
        Value::text("reading"),
        Value::Ints(Vec::new()),
        Value::Int(exec.pg.started_us(exec.tx)),
    ];
    let outcome = exec.insert(chunks::ID, row, OnConflict::Nothing).await?;
    let wanted = given(params, &[(tables::pipeline, 0), (tables::source_table, 1), (tables::generation, 2)]);
    let set = |row: &mut Vec<Value>| row[tables::bounds_done] = params[6].value();
    exec.update_where(tables::ID, has(&wanted), set).await?;
    Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
}

async fn advance_snapshot(exec: &mut Exec<'_>, params: Params<'_>) -> Result<Answer, Stop> {
    let columns = [(offsets::pipeline, 0), (offsets::log_epoch, 1), (offsets::part, 2), (offsets::lease_epoch, 9)];
    let mut wanted = given(params, &columns);
    wanted.push((offsets::topic, Value::text("snapshot")));
    let now = exec.pg.now_us();
    let set = |row: &mut Vec<Value>| {
        row[offsets::next_offset] = params[4].value();
        row[offsets::updated_at] = Value::Int(now);
    };
    let moved = exec.update_where(offsets::ID, has(&wanted), set).await?.len();
    if moved == 0 {
        return Ok(Answer::default());
    }
    let (part, partitions) = (params[2].int(), params[3].int());
    let sources = params[5].text_values();
    let (generations, numbers, counts) = (params[6].ints(), params[7].ints(), params[8].ints());
    let mut sums: Vec<(Value, i64, i64)> = Vec::new();
    for at in 0..sources.len() {
        let same = [
            (chunks::pipeline, params[0].value()),
            (chunks::source_table, sources[at].clone()),
            (chunks::generation, Value::Int(generations[at])),
            (chunks::chunk, Value::Int(numbers[at])),
        ];
        let same = has(&same);
        let done = |row: &[Value]| match &row[chunks::parts_done] {
            Value::Ints(parts) => parts.clone(),
            other => panic!("{other:?} is no list of partitions"),
        };
        let open = |row: &[Value]| same(row) && !done(row).contains(&part);
        let set = |row: &mut Vec<Value>| {
            let mut parts = done(row);
            parts.push(part);
            if parts.len() as i64 >= partitions {
                row[chunks::state] = Value::text("done");
            }
            row[chunks::parts_done] = Value::Ints(parts);
            row[chunks::rows] = Value::Int(row[chunks::rows].int() + counts[at]);
        };
        for _ in exec.update_where(chunks::ID, open, set).await? {
            let place = sums.iter().position(|(table, of, _)| *table == sources[at] && *of == generations[at]);
            match place {
                Some(place) => sums[place].2 += counts[at],
                None => sums.push((sources[at].clone(), generations[at], counts[at])),
            }
        }
    }
    for (table, generation, rows) in sums {
        let wanted = [
            (tables::pipeline, params[0].value()),
            (tables::source_table, table),
            (tables::generation, Value::Int(generation)),
        ];
        let set = |row: &mut Vec<Value>| row[tables::rows_copied] = Value::Int(row[tables::rows_copied].int() + rows);
        exec.update_where(tables::ID, has(&wanted), set).await?;
    }
    Ok(Answer::rows(vec![Vec::new(); moved]))
}

async fn lease_statement(
    state: State,
    exec: &mut Exec<'_>,
    info: &SessionInfo,
    params: Params<'_>,
) -> Result<Answer, Stop> {
    let mut wanted = given(params, &[(lease::pipeline, 0), (lease::role, 1)]);
    let now = exec.pg.now_us();
    match state {
        State::LeaseRow => {
            let mut row = vec![Value::Null; lease::NAMES.len()];
            row[lease::pipeline] = params[0].value();
            row[lease::role] = params[1].value();
            row[lease::holder] = Value::text("");
            row[lease::epoch] = Value::Int(0);
            row[lease::expires_at] = Value::Int(NEVER);
            let outcome = exec.insert(lease::ID, row, OnConflict::Nothing).await?;
            Ok(Answer::affected(usize::from(outcome != Inserted::Skipped)))
        }
        State::LeaseHolder => {
            let mut answer = Vec::new();
            for row in exec.rows(lease::ID, has(&wanted)) {
                let expires = row[lease::expires_at].int();
                let left = if expires == NEVER { 0 } else { expires - now };
                answer.push(vec![row[lease::holder].clone(), Value::Int(left)]);
            }
            Ok(Answer::rows(answer))
        }
        State::LeaseTake => {
            let same = has(&wanted);
            let pg = exec.pg;
            let sessions = pg.sessions();
            let free = |row: &[Value]| {
                let session = |session: &SessionInfo| {
                    Value::Int(i64::from(session.pid)) == row[lease::backend_pid]
                        && Value::Int(session.started_us) == row[lease::backend_start]
                };
                let lives = || sessions.iter().any(session);
                same(row) && (row[lease::expires_at].int() < pg.now_us() || !lives())
            };
            let set = |row: &mut Vec<Value>| {
                row[lease::holder] = params[2].value();
                row[lease::epoch] = Value::Int(row[lease::epoch].int() + 1);
                hold(row, pg.now_us() + params[3].int(), info);
            };
            Ok(picked(exec.update_where(lease::ID, free, set).await?, &[lease::epoch]))
        }
        State::Renew => {
            wanted.extend(given(params, &[(lease::epoch, 2)]));
            let pg = exec.pg;
            let set = |row: &mut Vec<Value>| hold(row, pg.now_us() + params[3].int(), info);
            Ok(Answer::affected(exec.update_where(lease::ID, has(&wanted), set).await?.len()))
        }
        _ => {
            wanted.extend(given(params, &[(lease::epoch, 2)]));
            let set = |row: &mut Vec<Value>| row[lease::expires_at] = Value::Int(NEVER);
            Ok(Answer::affected(exec.update_where(lease::ID, has(&wanted), set).await?.len()))
        }
    }
}

fn hold(row: &mut [Value], until_us: i64, info: &SessionInfo) {
    row[lease::expires_at] = Value::Int(until_us);
    row[lease::backend_pid] = Value::Int(i64::from(info.pid));
    row[lease::backend_start] = Value::Int(info.started_us);
}

/// Rows, or tombstones, older than a version; the version is the last column of both.
pub async fn delete_older(exec: &mut Exec<'_>, table: TableId, version: i64) -> Result<Answer, Stop> {
    let older = |row: &[Value]| row.last().is_some_and(|value| value.int() < version);
    Ok(Answer::affected(exec.delete_where(table, older).await?.len()))
}

/// The highest version of rows and tombstones.
pub fn highest(exec: &Exec<'_>, target: TableId, tombstones: TableId) -> Answer {
    let versions = [target, tombstones].into_iter().flat_map(|table| exec.rows(table, |_| true));
    let highest = versions.filter_map(|row| row.last().map(Value::int)).max();
    Answer::row(vec![Value::Int(highest.unwrap_or(0).max(0))])
}
