//! A script about parents whose children are to be read again.

use cutover::database::postgres::Address;

use super::{PIPELINE, Params, Script};

/// A child, a kind, a key and a version.
type Told<'a> = (&'a str, &'a str, &'a str, i64);

/// Cascades: stored, added to, read in their order, held and ended; and rows of children that are set aside.
pub async fn cascades(target: Address) -> Vec<String> {
    let mut script = Script::new(target).await;
    let (orders, parts) = ("shop.orders", "shop.parts");
    let one = "{\"user_id\":1}";
    let first: &[Told<'_>] = &[
        (orders, "gone", one, 5),
        (orders, "gone", one, 7),
        (orders, "gone", "{\"user_id\":2}", 4),
        (orders, "came", "{\"user_id\":2}", 7),
        (parts, "gone", "{}", 9),
    ];
    script.cascades("store cascades", first).await;
    script.next(10, &[], false).await;
    script.cascades("store cascades", &[(orders, "gone", one, 7)]).await;
    script.cascades("store cascades", &[(orders, "gone", one, 8), (parts, "gone", "{\"order_id\":1}", 3)]).await;
    script.run("count cascades", &[&PIPELINE]).await;
    script.cascades("end cascades", &[(orders, "gone", "{\"user_id\":2}", 3)]).await;
    script.cascades("end cascades", &[(orders, "came", "{\"user_id\":2}", 7)]).await;
    script.next(10, &[], false).await;
    script.next(7, &[], false).await;
    script.hold(&[(orders, "gone", one, 7), (orders, "gone", "{\"user_id\":2}", 4)], true).await;
    script.next(10, &[orders], false).await;
    script.next(10, &[orders], true).await;
    script.hold(&[(orders, "gone", one, 8)], false).await;
    script.cascades("end cascades", &[(parts, "gone", "{}", 9)]).await;
    script.next(10, &[orders], false).await;
    script.cascades("end cascades", &[(parts, "gone", "{\"order_id\":1}", 3)]).await;
    script.next(10, &[orders], false).await;
    script.next(10, &[parts], false).await;
    script.add(&[(orders, "gone", one, 6), (orders, "gone", "{\"user_id\":2}", 9)], 2).await;
    script.add(&[(parts, "gone", "{\"order_id\":4}", 1), (parts, "gone", "{\"order_id\":4}", 2)], 1).await;
    script.next(10, &[orders], false).await;
    script.cascades("store cascades", &[(orders, "gone", one, 20)]).await;
    script.next(30, &[], false).await;
    parked(&mut script).await;
    script.lines
}

/// Rows of children that wait, and that are dead letters.
async fn parked(script: &mut Script) {
    for (key, version) in [("{\"id\":1}", 5), ("{\"id\":2}", 6), ("{\"id\":1}", 7)] {
        script.dead_letter(key, version).await;
    }
    let waits: Params<'_> = &[
        &PIPELINE,
        &0i32,
        &vec!["shop.users", "shop.users", "shop.items"],
        &vec!["{\"id\":2}", "{\"id\":3}", "{\"id\":4}"],
        &vec![8i64, 2, 2],
        &vec![1i64; 3],
        &vec!["{\"b\":1}", "{\"b\":2}", "{\"b\":3}"],
        &vec!["why"; 3],
        &vec![0i64; 3],
    ];
    script.run("wait", waits).await;
    for (before, after, limit) in [(10i64, "", 10i64), (8, "", 10), (10, "{\"id\":1}", 1), (1, "", 10)] {
        script.run("parked children", &[&PIPELINE, &"shop.users", &before, &after, &limit]).await;
    }
}

/// The columns of cascades.
fn lists(told: &[Told<'_>]) -> ([Vec<String>; 3], Vec<i64>) {
    let texts = |of: fn(&Told<'_>) -> String| told.iter().map(of).collect::<Vec<_>>();
    let lists = [texts(|told| told.0.into()), texts(|told| told.1.into()), texts(|told| told.2.into())];
    (lists, told.iter().map(|told| told.3).collect())
}

impl Script {
    async fn cascades(&mut self, statement: &str, told: &[Told<'_>]) {
        let ([children, kinds, keys], versions) = lists(told);
        self.run(statement, &[&PIPELINE, &children, &kinds, &keys, &versions]).await;
    }

    async fn add(&mut self, told: &[Told<'_>], depth: i32) {
        let ([children, kinds, keys], versions) = lists(told);
        let depths = vec![depth; told.len()];
        self.run("add cascades", &[&PIPELINE, &children, &kinds, &keys, &versions, &depths]).await;
    }

    async fn hold(&mut self, told: &[Told<'_>], hides: bool) {
        let ([children, kinds, keys], versions) = lists(told);
        self.run("hold cascades", &[&PIPELINE, &children, &kinds, &keys, &versions, &hides]).await;
    }

    async fn next(&mut self, up_to: i64, open: &[&str], again: bool) {
        let open: Vec<String> = open.iter().map(|child| (*child).to_owned()).collect();
        self.run("next cascades", &[&PIPELINE, &up_to, &open, &again, &10i64]).await;
    }
}
