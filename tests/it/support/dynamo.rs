//! Tables of a test's own on DynamoDB Local, spoken to in the service's own JSON over HTTP.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

use super::{own::Own, server};

const LIMIT: Duration = Duration::from_secs(30);
static NAMES: AtomicUsize = AtomicUsize::new(0);

/// The tables that one test makes.
pub struct Dynamo {
    pub url: String,
    address: String,
    tables: Mutex<BTreeSet<String>>,
}

impl Dynamo {
    /// On the service that all tests of this process share. DynamoDB Local gets slower with every change that it has
    /// seen: one that outlives the process would be of no use after some runs.
    pub async fn shared() -> Self {
        static URL: OnceCell<String> = OnceCell::const_new();
        Self::at(URL.get_or_init(async || Own::Dynamodb.share()).await)
    }

    /// At a URL as `cutover.toml` has it.
    pub fn at(url: &str) -> Self {
        let address = url.split_once("endpoint=http://").unwrap().1.to_owned();
        Self { url: url.to_owned(), address, tables: Mutex::default() }
    }

    /// A name that no other test's table has.
    pub fn name(&self, table: &str) -> String {
        let name = format!("{table}_{}_{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        self.tables.lock().unwrap().insert(name.clone());
        name
    }

    /// A table with these key attributes (`("isbn", "S")`) and a stream of both images.
    pub async fn table(&self, name: &str, key: &[(&str, &str)]) -> String {
        let name = self.name(name);
        self.create(&name, key, Some("NEW_AND_OLD_IMAGES")).await;
        name
    }

    pub async fn create(&self, name: &str, key: &[(&str, &str)], stream: Option<&str>) {
        let attributes: Vec<Value> =
            key.iter().map(|(name, kind)| json!({"AttributeName": name, "AttributeType": kind})).collect();
        let roles = ["HASH", "RANGE"];
        let elements: Vec<Value> =
            key.iter().zip(roles).map(|((name, _), role)| json!({"AttributeName": name, "KeyType": role})).collect();
        let mut table = json!({
            "TableName": name, "AttributeDefinitions": attributes, "KeySchema": elements, "BillingMode": "PAY_PER_REQUEST",
        });
        if let Some(view) = stream {
            table["StreamSpecification"] = json!({"StreamEnabled": true, "StreamViewType": view});
        }
        self.call("CreateTable", table).await;
    }

    pub async fn put(&self, table: &str, item: Value) {
        self.call("PutItem", json!({"TableName": table, "Item": item})).await;
    }

    pub async fn delete(&self, table: &str, key: Value) {
        self.call("DeleteItem", json!({"TableName": table, "Key": key})).await;
    }

    /// Puts many items, 25 at a time.
    pub async fn put_all(&self, table: &str, items: &[Value]) {
        for items in items.chunks(25) {
            let requests: Vec<Value> = items.iter().map(|item| json!({"PutRequest": {"Item": item}})).collect();
            let answer = self.call("BatchWriteItem", json!({"RequestItems": {table: requests}})).await;
            assert_eq!(answer["UnprocessedItems"], json!({}));
        }
    }

    /// Every item, in DynamoDB's own JSON.
    pub async fn items(&self, table: &str) -> Vec<Value> {
        let (mut items, mut after) = (Vec::new(), Value::Null);
        loop {
            let mut request = json!({"TableName": table, "ConsistentRead": true});
            if !after.is_null() {
                request["ExclusiveStartKey"] = after;
            }
            let mut answer = self.call("Scan", request).await;
            items.append(answer["Items"].as_array_mut().unwrap());
            after = answer["LastEvaluatedKey"].take();
            if after.is_null() {
                return items;
            }
        }
    }

    /// The answer of the service, which is no error.
    pub async fn call(&self, operation: &str, request: Value) -> Value {
        self.try_call(operation, request).await.unwrap_or_else(|error| panic!("{operation}: {error}"))
    }

    pub async fn try_call(&self, operation: &str, request: Value) -> Result<Value, String> {
        let body = request.to_string();
        let exchange = exchange(&self.address, operation, &body);
        tokio::time::timeout(LIMIT, exchange).await.unwrap_or_else(|_| panic!("{operation}: no answer"))
    }
}

impl Drop for Dynamo {
    fn drop(&mut self) {
        let (address, tables) = (self.address.clone(), std::mem::take(&mut *self.tables.lock().unwrap()));
        server::clean_up(async move {
            for table in tables {
                let _gone = exchange(&address, "DeleteTable", &json!({"TableName": table}).to_string()).await;
            }
        });
    }
}

async fn exchange(address: &str, operation: &str, body: &str) -> Result<Value, String> {
    let told = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(address).await.map_err(told)?;
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nX-Amz-Target: DynamoDB_20120810.{operation}\r\n\
         Content-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\nAuthorization: AWS4-HMAC-SHA256 \
         Credential=cutover/20260101/us-east-1/dynamodb/aws4_request, SignedHeaders=host, Signature=0\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.map_err(told)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(told)?;
    let answer = String::from_utf8(answer).map_err(|error| error.to_string())?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no HTTP answer")?;
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "chunked answers are not understood here");
    if head.split(' ').nth(1) != Some("200") {
        return Err(body.to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// An attribute's value as plain JSON.
pub fn plain(attribute: &Value) -> Value {
    let (kind, value) = attribute.as_object().unwrap().iter().next().unwrap();
    let number = |text: &Value| serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap();
    let list = |each: &dyn Fn(&Value) -> Value| Value::Array(value.as_array().unwrap().iter().map(each).collect());
    let set = |each: &dyn Fn(&Value) -> Value| {
        let mut elements: Vec<Value> = value.as_array().unwrap().iter().map(each).collect();
        elements.sort_by_key(Value::to_string);
        Value::Array(elements)
    };
    match kind.as_str() {
        "NULL" => Value::Null,
        "BOOL" | "S" | "B" => value.clone(),
        "N" => number(value),
        "L" => list(&plain),
        "SS" | "BS" => set(&Value::clone),
        "NS" => set(&number),
        "M" => plain_item(value),
        other => panic!("an attribute of type {other}"),
    }
}

/// An item as plain JSON.
pub fn plain_item(item: &Value) -> Value {
    Value::Object(item.as_object().unwrap().iter().map(|(name, value)| (name.clone(), plain(value))).collect())
}
