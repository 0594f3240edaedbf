//! The OpenAI-compatible routes.

use serde_json::{Value, json};

use super::support::{start, with_workers};

/// The events of a stream, `[DONE]` included as text.
fn events(body: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(body).unwrap();
    assert!(text.ends_with("\n\n"), "{text}");
    text.trim_end()
        .split("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_completion_gives_the_last_message_back() {
    let upstream = start(with_workers(1)).await;
    let messages = json!([
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "three little words"}]},
    ]);
    let body = json!({"model": "m", "messages": messages});
    let answer = upstream.post("openai/v1/chat/completions", &body).await;
    let reply = answer.json();
    assert_eq!(
        (answer.status, &reply["object"]),
        (200, &json!("chat.completion"))
    );
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["content"], "three little words");
    assert_eq!(
        (&reply["model"], &reply["usage"]["completion_tokens"]),
        (&json!("m"), &json!(3))
    );
    let body = json!({"model": "m", "prompt": "a b"});
    let reply = upstream.post("openai/v1/completions", &body).await.json();
    assert_eq!(reply["choices"][0]["text"], "a b");
    // A job like any other, at its own door.
    assert_eq!(upstream.get("health").await.json()["jobs"]["completed"], 2);
    assert_eq!(upstream.seen("openai")["accepted"], 2);
    assert_eq!(upstream.seen("runsync")["arrived"], 0);
}

#[tokio::test]
async fn a_streamed_completion_comes_word_by_word() {
    let upstream = start(with_workers(1)).await;
    let body = json!({
        "model": "m", "stream": true, "gap": 0.02, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "one two three"}],
    });
    let answer = upstream.post("openai/v1/chat/completions", &body).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = events(&answer.body);
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let parts: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let words: Vec<&str> = parts
        .iter()
        .filter_map(|part| part["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(words, ["one ", "two ", "three"]);
    assert_eq!(parts[3]["choices"][0]["finish_reason"], "stop");
    assert_eq!(parts[4]["usage"]["total_tokens"], 6);
}

#[tokio::test]
async fn a_client_that_leaves_a_stream_leaves_its_place() {
    let upstream = start(with_workers(1)).await;
    let body = json!({"stream": true, "gap": 10, "messages": [{"content": "one two"}]});
    let request = super::support::request(
        "POST",
        "/v2/ep/openai/v1/chat/completions",
        Some("key"),
        body.to_string().into(),
    );
    let mut sender = super::support::connect(upstream.address).await;
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    drop((response, sender));
    upstream.emulator.set_faults(Default::default());
    let answer = upstream.get("openai/v1/models");
    // The one worker is still at it; the models' job waits behind, and a second place was free.
    let waited = tokio::time::timeout(std::time::Duration::from_millis(100), answer).await;
    assert!(waited.is_err());
    assert_eq!(upstream.seen("openai")["accepted"], 2);
}

#[tokio::test]
async fn models_are_listed_and_errors_are_the_workers() {
    let upstream = start(with_workers(1)).await;
    let list = upstream.get("openai/v1/models").await.json();
    assert_eq!(
        (&list["object"], &list["data"][0]["object"]),
        (&json!("list"), &json!("model"))
    );
    let body = json!({"fail": "boom", "messages": []});
    let answer = upstream.post("openai/v1/chat/completions", &body).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["message"]),
        (500, &json!("boom"))
    );
    let answer = upstream
        .call("POST", "openai/v1/chat/completions", "{")
        .await;
    assert_eq!(answer.status, 400);
    let answer = upstream.post("openai/v1/nothing", &json!({})).await;
    assert_eq!(answer.status, 404);
}
