//! Bounded reads.

use std::time::Duration;

use tapio_store::client::{Advice, ClientError, Parameter, ReadLimits};

use crate::Store;

/// Scenario: parameters of every kind, with quotes, backslashes, tabs and line ends in the text.
/// Guarantees: they come back as they were given; none becomes part of the statement.
#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_values() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Row {
        text: String,
        unsigned: u64,
        signed: i64,
        float: f64,
        texts: Vec<String>,
    }
    let Some(store) = Store::start().await else { return };
    let text = "it's \\ \"quoted\"\t\n{x:String} ?; DROP TABLE tapio.frames";
    let texts = vec!["a'b".to_owned(), String::new(), "c,d]".to_owned()];
    let rows: Vec<Row> = store
        .reader
        .rows(
            "SELECT {text:String} AS text, {unsigned:UInt64} AS unsigned, {signed:Int64} AS signed, \
             {float:Float64} AS float, {texts:Array(String)} AS texts",
            &[
                ("text", Parameter::from(text)),
                ("unsigned", Parameter::from(u64::MAX)),
                ("signed", Parameter::from(i64::MIN)),
                ("float", Parameter::Float(-0.25)),
                ("texts", Parameter::Texts(texts.clone())),
            ],
        )
        .await
        .unwrap();
    let expected = Row { text: text.to_owned(), unsigned: u64::MAX, signed: i64::MIN, float: -0.25, texts };
    assert_eq!(rows, [expected]);
    store.stop().await;
}

/// Scenario: answers with too many rows, too many bytes, that take too long, and a write through the reading call.
/// Guarantees: each is a named error, none is a cut answer.
#[tokio::test(flavor = "multi_thread")]
async fn limits_are_errors() {
    let Some(store) = Store::start().await else { return };
    let small = ReadLimits {
        rows_max: 10,
        answer_bytes_max: 1_000,
        time_max: Duration::from_secs(1),
        ..Default::default()
    };
    let reader = store.reader.with_limits(small);
    match reader.answer("SELECT number FROM numbers(11)", &[]).await {
        Err(ClientError::Server { code: 396, .. }) => {}
        other => panic!("too many rows gave {other:?}"),
    }
    match reader.answer("SELECT repeat('x', 2000) AS x", &[]).await {
        Err(ClientError::AnswerTooLarge { limit_bytes: 1_000 }) => {}
        other => panic!("too many bytes gave {other:?}"),
    }
    let slow =
        reader.answer("SELECT sleepEachRow(0.5) FROM numbers(10) SETTINGS max_block_size = 1", &[]).await;
    match slow {
        Err(error) => assert_eq!(error.advice(), Advice::Retry, "{error}"),
        Ok(answer) => panic!("too slow a query gave {answer:?}"),
    }
    let writing = store.writer.answer("INSERT INTO tapio.frames (sequence) SELECT 1", &[]).await;
    assert!(matches!(writing, Err(ClientError::Server { code: 164, .. })), "{writing:?}");
    store.stop().await;
}
