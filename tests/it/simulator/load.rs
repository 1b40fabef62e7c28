//! What applications do at the model source: transactions that a real server would accept.

use std::collections::BTreeMap;

use cutover::model::Value;

use super::{
    chance::{Chance, FAMILY_STEP_KINDS, Fault, STEP_KINDS},
    family,
    source::{BAD, Key, Row, Server, Step, Tables, integer, key},
};

/// Rows that a transaction of more than usual size has.
const HUGE: u64 = 25;

/// Composes transactions against the newest rows.
pub struct Load<'a> {
    chance: &'a Chance,
    staged: Tables,
    steps: Vec<Step>,
    fresh: &'a mut u64,
}

fn user(id: i64, email: String, state: i64) -> Row {
    vec![Value::Int(id), Value::Text(email), Value::Int(state)]
}

fn item(id: i64, user: i64, qty: i64) -> Row {
    vec![Value::Int(id), Value::Int(user), Value::Int(qty)]
}

/// The next transaction; none if it would have to wait for another, which is then somebody else's turn.
pub fn transaction(server: &Server, chance: &Chance, fresh: &mut u64) -> Option<Vec<Step>> {
    let mut load = Load { chance, staged: server.newest(), steps: Vec::new(), fresh };
    if let Some(ddl) = load.ddl() {
        return server.is_free(&ddl).then_some(ddl);
    }
    let steps = if chance.likely(0.04) { HUGE } else { chance.number(1..6) };
    for _ in 0..steps {
        load.step();
    }
    let steps = load.steps;
    (!steps.is_empty() && server.is_free(&steps) && waits_for_nothing(server, &steps)).then_some(steps)
}

/// Whether no unique value or parent of these steps belongs to a transaction that is not visible yet.
fn waits_for_nothing(server: &Server, steps: &[Step]) -> bool {
    let Some(users) = server.read("users") else { return false };
    let touched = |of: &str, key: &Key| {
        steps.iter().any(|step| match step {
            Step::Update { table, before, after } => {
                *table == of && [before, after].iter().any(|row| super::source::key(table, row) == *key)
            }
            Step::Insert { table, after: row } | Step::Delete { table, before: row } => {
                *table == of && super::source::key(table, row) == *key
            }
            Step::Truncate { .. } | Step::Alter { .. } | Step::Cascaded { .. } => false,
        })
    };
    let there = |(table, key): &(&'static str, Key)| {
        server.read(table).is_some_and(|rows| rows.contains_key(key)) || touched(table, key)
    };
    steps.iter().all(|step| match step {
        Step::Insert { table: "users", after } | Step::Update { table: "users", after, .. } => {
            users.iter().all(|(key, row)| row[1] != after[1] || touched("users", key))
        }
        Step::Insert { .. }
        | Step::Update { .. }
        | Step::Delete { .. }
        | Step::Truncate { .. }
        | Step::Alter { .. }
        | Step::Cascaded { .. } => family::parents(step).iter().all(there),
    })
}

/// The rows that are there before the pipeline is.
pub fn beginning(chance: &Chance, fresh: &mut u64) -> Vec<Vec<Step>> {
    let mut transactions = Vec::new();
    let mut staged = Tables::default();
    // Parents have to be there before their children are.
    let most = if chance.taste.family { 16 } else { 8 };
    for _ in 0..chance.number(1..most) {
        let mut load = Load { chance, staged: staged.clone(), steps: Vec::new(), fresh };
        for _ in 0..chance.number(1..6) {
            load.step();
        }
        staged = load.staged.clone();
        if !load.steps.is_empty() {
            transactions.push(load.steps);
        }
    }
    transactions
}

/// Transactions that leave no row which the target refuses.
pub fn amends(newest: &Tables) -> Vec<Step> {
    let bad = newest.of("notes").into_values().filter(|row| row[2] == Value::Text(BAD.into()));
    bad.map(|before| {
        let mut after = before.clone();
        after[2] = Value::Text("amended".into());
        Step::Update { table: "notes", before, after }
    })
    .collect()
}

impl Load<'_> {
    fn fresh(&mut self) -> u64 {
        *self.fresh += 1;
        *self.fresh
    }

    fn push(&mut self, step: Step) {
        self.steps.extend(family::carried_out(&mut self.staged, step));
    }

    fn pick(&self, table: &str) -> Option<(Key, Row)> {
        let rows: BTreeMap<Key, Row> = self.staged.of(table);
        let place = self.chance.number(0..rows.len().max(1) as u64) as usize;
        rows.into_iter().nth(place)
    }

    fn ddl(&mut self) -> Option<Vec<Step>> {
        if self.chance.strikes(Fault::Truncate, 0.03, || "at the source".into()) {
            let table = if self.chance.likely(0.5) { "items" } else { "notes" };
            return Some(vec![Step::Truncate { table }]);
        }
        if self.chance.strikes(Fault::Alter, 0.03, || "at the source".into()) {
            let table = if self.chance.likely(0.5) { "users" } else { "items" };
            return Some(vec![Step::Alter { table, column: 2, add: 1000 }]);
        }
        None
    }

    fn step(&mut self) {
        let family = if self.chance.taste.family { FAMILY_STEP_KINDS } else { 0 };
        let drawn = self.chance.number(0..STEP_KINDS + family);
        let favourite = self.chance.taste.favourite.filter(|_| self.chance.likely(0.5));
        match favourite.unwrap_or(drawn) {
            0..5 => self.insert_user(),
            5..8 => self.change_user(),
            8 => self.swap_emails(),
            9 => self.move_user(),
            10 => self.delete_user(),
            11..14 => self.insert_item(),
            14..17 => self.change_item(),
            17..19 => self.note(),
            19 => {
                let id = self.fresh().cast_signed();
                self.push(Step::Insert { table: "other", after: vec![Value::Int(id), Value::Int(1)] });
            }
            of_family => self.family_step(of_family - STEP_KINDS),
        }
    }

    fn family_step(&mut self, kind: u64) {
        match kind {
            0..3 => self.insert_order(),
            3..5 => self.change_order(),
            5..8 => self.insert_part(),
            8 => self.change_part(),
            9 => self.make_again("users"),
            10 => self.make_again("orders"),
            11 => self.delete_user(),
            _ => self.move_user(),
        }
    }

    /// Keys come back after they were deleted: half of them are of a small range.
    fn id(&mut self, table: &str) -> i64 {
        let small = self.chance.number(1..12).cast_signed();
        if self.chance.likely(0.5) && !self.staged.of(table).contains_key(&vec![small]) {
            return small;
        }
        100 + self.fresh().cast_signed()
    }

    /// So do e-mail addresses.
    fn email(&mut self) -> String {
        let small = format!("e{}", self.chance.number(1..8));
        let taken = self.staged.of("users").values().any(|row| row[1] == Value::Text(small.clone()));
        if self.chance.likely(0.4) && !taken { small } else { format!("f{}", self.fresh()) }
    }

    fn insert_user(&mut self) {
        let (id, email) = (self.id("users"), self.email());
        self.push(Step::Insert { table: "users", after: user(id, email, 0) });
    }

    fn change_user(&mut self) {
        let Some((_, before)) = self.pick("users") else { return };
        let mut after = before.clone();
        if self.chance.likely(0.5) {
            after[1] = Value::Text(self.email());
        }
        after[2] = Value::Int(integer(&after[2]) + 1);
        self.push(Step::Update { table: "users", before, after });
    }

    /// Two rows trade a unique value, by way of a third.
    fn swap_emails(&mut self) {
        let (Some((one, first)), Some((two, second))) = (self.pick("users"), self.pick("users")) else { return };
        if one == two {
            return;
        }
        let with = |row: &Row, email: &Value| -> Row { vec![row[0].clone(), email.clone(), row[2].clone()] };
        let parked = with(&first, &Value::Text(format!("parked{}", self.fresh())));
        let steps = [
            (first.clone(), parked.clone()),
            (second.clone(), with(&second, &first[1])),
            (parked, with(&first, &second[1])),
        ];
        for (before, after) in steps {
            self.push(Step::Update { table: "users", before, after });
        }
    }

    fn children(&self, user: i64) -> Vec<Row> {
        self.staged.of("items").into_values().filter(|row| integer(&row[1]) == user).collect()
    }

    /// A key changes; the children first let go of it.
    fn move_user(&mut self) {
        let Some((id, before)) = self.pick("users") else { return };
        for child in self.children(id[0]) {
            self.push(Step::Delete { table: "items", before: child });
        }
        let mut after = before.clone();
        after[0] = Value::Int(self.id("users"));
        self.push(Step::Update { table: "users", before, after });
    }

    fn delete_user(&mut self) {
        let Some((id, before)) = self.pick("users") else { return };
        // Where its key takes them along nobody needs to.
        let unseen = self.chance.taste.family && self.chance.likely(0.5);
        for child in self.children(id[0]).into_iter().filter(|_| !unseen) {
            self.push(Step::Delete { table: "items", before: child });
        }
        self.push(Step::Delete { table: "users", before });
    }

    fn insert_item(&mut self) {
        let Some((user, _)) = self.pick("users") else { return };
        let (id, qty) = (self.id("items"), self.quantity());
        self.push(Step::Insert { table: "items", after: item(id, user[0], qty) });
    }

    /// Below zero the transform's filter leaves the row out.
    fn quantity(&self) -> i64 {
        self.chance.number(0..10).cast_signed() - 3
    }

    fn change_item(&mut self) {
        let Some((_, before)) = self.pick("items") else { return };
        if self.chance.likely(0.25) {
            self.push(Step::Delete { table: "items", before });
            return;
        }
        let mut after = before.clone();
        after[2] = Value::Int(self.quantity());
        if self.chance.likely(0.3)
            && let Some((user, _)) = self.pick("users")
        {
            after[1] = Value::Int(user[0]);
        }
        if self.chance.likely(0.2) {
            after[0] = Value::Int(self.id("items"));
        }
        self.push(Step::Update { table: "items", before, after });
    }

    /// A row is deleted and made again under its key at once: what was behind it is gone.
    fn make_again(&mut self, table: &'static str) {
        let Some((_, before)) = self.pick(table) else { return };
        let mut after = before.clone();
        after[2] = Value::Int(integer(&after[2]) + 1);
        self.push(Step::Delete { table, before });
        self.push(Step::Insert { table, after });
    }

    fn insert_order(&mut self) {
        let Some((user, _)) = self.pick("users") else { return };
        let (id, n) = (self.id("orders"), self.quantity());
        self.push(Step::Insert { table: "orders", after: vec![Value::Int(id), Value::Int(user[0]), Value::Int(n)] });
    }

    fn change_order(&mut self) {
        let Some((_, before)) = self.pick("orders") else { return };
        if self.chance.likely(0.3) {
            self.push(Step::Delete { table: "orders", before });
            return;
        }
        let mut after = before.clone();
        after[2] = Value::Int(self.quantity());
        if self.chance.likely(0.3)
            && let Some((user, _)) = self.pick("users")
        {
            after[1] = Value::Int(user[0]);
        }
        if self.chance.likely(0.3) {
            after[0] = Value::Int(self.id("orders"));
        }
        self.push(Step::Update { table: "orders", before, after });
    }

    /// The user of a part, or none.
    fn any_user(&self) -> Value {
        let user = self.pick("users").filter(|_| self.chance.likely(0.7));
        user.map_or(Value::Null, |(user, _)| Value::Int(user[0]))
    }

    fn insert_part(&mut self) {
        let Some((order, _)) = self.pick("orders") else { return };
        let (id, user) = (self.id("parts"), self.any_user());
        self.push(Step::Insert { table: "parts", after: vec![Value::Int(id), Value::Int(order[0]), user] });
    }

    fn change_part(&mut self) {
        let Some((_, before)) = self.pick("parts") else { return };
        if self.chance.likely(0.3) {
            self.push(Step::Delete { table: "parts", before });
            return;
        }
        let mut after = before.clone();
        after[2] = self.any_user();
        if self.chance.likely(0.5)
            && let Some((order, _)) = self.pick("orders")
        {
            after[1] = Value::Int(order[0]);
        }
        self.push(Step::Update { table: "parts", before, after });
    }

    fn note(&mut self) {
        let body =
            if self.chance.likely(self.chance.taste.bad) { BAD.to_owned() } else { format!("n{}", self.fresh()) };
        match self.pick("notes").filter(|_| self.chance.likely(0.7)) {
            Some((_, before)) if self.chance.likely(0.3) => self.push(Step::Delete { table: "notes", before }),
            Some((_, before)) => {
                let mut after = before.clone();
                after[2] = Value::Text(body);
                self.push(Step::Update { table: "notes", before, after });
            }
            None => {
                let after = vec![
                    Value::Int(self.chance.number(1..4).cast_signed()),
                    Value::Int(self.chance.number(1..4).cast_signed()),
                    Value::Text(body),
                ];
                if !self.staged.of("notes").contains_key(&key("notes", &after)) {
                    self.push(Step::Insert { table: "notes", after });
                }
            }
        }
    }
}
