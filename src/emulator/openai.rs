//! The OpenAI-compatible routes: each call is a job like any other (contract, section 7.1), whose
//! answer is the last message given back, word by word if it is streamed.
//!
//! The simulated handler reads `sleep`, `gap` (between two words of a stream) and `fail` from the call's
//! own body. Errors are the worker's, in its form.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::Answer;
use super::id::JobId;
use super::job::{Order, State, View};
use super::jobs::EndpointId;
use super::operations::{self, Begun};
use super::routes::OpenAiRoute;
use super::script::Script;
use super::shared::{Endpoint, Shared};

/// Streams were cut at 60 s once, "until 5 min" since (contract, section 7.1).
const LONGEST: Duration = Duration::from_secs(300);

/// The model that is always there.
const MODEL: &str = "emulated";

/// A call whose job has been submitted.
pub(super) struct Call {
    job: JobId,
    kind: OpenAiRoute,
    stream: bool,
    include_usage: bool,
    model: String,
    prompt_tokens: usize,
    /// The answer; its words are the job's chunks.
    words: Vec<String>,
    created: u64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    model: Option<String>,
    messages: Vec<Message>,
    prompt: Value,
    stream: bool,
    stream_options: Option<StreamOptions>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
}

impl Body {
    /// The last message, or the prompt.
    fn text(&self) -> String {
        text(
            self.messages
                .last()
                .map_or(&self.prompt, |last| &last.content),
        )
    }
}

/// A text, or the texts of a list of parts.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(part) => part.get("text").map(text).unwrap_or_default(),
        _ => String::new(),
    }
}

pub(super) fn begin(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    route: Option<OpenAiRoute>,
    raw_body: &Bytes,
) -> Begun {
    let Some(kind) = route else {
        return Begun::Done(error(StatusCode::NOT_FOUND, "no such route"));
    };
    let path = kind.path();
    let read = || -> serde_json::Result<(Body, Order)> {
        let (body, input) = if kind == OpenAiRoute::Models {
            (Body::default(), format!(r#"{{"openai_route":"/{path}"}}"#))
        } else {
            let text: &RawValue = serde_json::from_slice(raw_body)?;
            let input = format!(
                r#"{{"openai_route":"/{path}","openai_input":{}}}"#,
                text.get()
            );
            (serde_json::from_str(text.get())?, input)
        };
        let order = Order::new(Arc::from(RawValue::from_string(input)?), true);
        Ok((body, order))
    };
    let (body, order) = match read() {
        Ok(read) => read,
        Err(fault) => return Begun::Done(error(StatusCode::BAD_REQUEST, &fault.to_string())),
    };
    let text = body.text();
    let words: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
    let wish = serde_json::from_slice::<&RawValue>(raw_body).map(Script::read);
    let script = Script {
        chunks: if body.stream {
            u32::try_from(words.len()).unwrap_or(u32::MAX)
        } else {
            0
        },
        bytes: None,
        ..wish.unwrap_or_default()
    };
    match operations::enqueue(shared, endpoint, Order { script, ..order }) {
        Err(refusal) => Begun::Done(refusal),
        Ok(job) => Begun::OpenAi(Call {
            job,
            kind,
            stream: body.stream,
            include_usage: body.stream_options.is_some_and(|o| o.include_usage),
            model: body.model.unwrap_or_else(|| MODEL.to_owned()),
            prompt_tokens: words.len(),
            words,
            created: shared.clock.unix_seconds(),
        }),
    }
}

impl Call {
    pub async fn answer(self, shared: &Arc<Shared>, endpoint: &Endpoint) -> Answer {
        if self.stream {
            let (events, body) = mpsc::channel(16);
            tokio::spawn(self.pump(Arc::clone(shared), endpoint.id, events));
            return Answer::events(body);
        }
        let ended = self.ended(shared, endpoint.id);
        match tokio::time::timeout(LONGEST, ended).await {
            Ok(Some(view)) if view.status == State::Completed => Answer::json(&self.whole()),
            Ok(Some(view)) => error(StatusCode::INTERNAL_SERVER_ERROR, reason(&view)),
            Ok(None) => error(StatusCode::INTERNAL_SERVER_ERROR, "the job is gone"),
            Err(_elapsed) => error(StatusCode::GATEWAY_TIMEOUT, "the job takes too long"),
        }
    }

    async fn ended(&self, shared: &Arc<Shared>, endpoint: EndpointId) -> Option<View> {
        loop {
            let looked = shared.look(self.job, |jobs, _| match jobs.status(endpoint, self.job) {
                Some(view) => view.status.is_final().then_some(Some(view)),
                None => Some(None),
            });
            match looked {
                Ok(view) => return view,
                Err(changed) => changed.await,
            }
        }
    }

    /// Sends words as they are yielded, until the end, five minutes, or the client's going.
    async fn pump(self, shared: Arc<Shared>, endpoint: EndpointId, events: mpsc::Sender<Bytes>) {
        let send_all = async {
            loop {
                let looked = shared.look(self.job, |jobs, _| {
                    let Some((state, chunks)) = jobs.drain(endpoint, self.job) else {
                        return Some((State::Failed, 0..0));
                    };
                    (state.is_final() || !chunks.is_empty()).then_some((state, chunks))
                });
                let (state, chunks) = match looked {
                    Ok(found) => found,
                    Err(changed) => {
                        changed.await;
                        continue;
                    }
                };
                let words = chunks.filter_map(|k| self.words.get(k as usize));
                for word in words.map(|word| event(&self.part(Some(word)))) {
                    events.send(word).await?;
                }
                if state.is_final() {
                    for last in self.last(state) {
                        events.send(last).await?;
                    }
                    return Ok::<(), mpsc::error::SendError<Bytes>>(());
                }
            }
        };
        tokio::select! {
            _ = tokio::time::timeout(LONGEST, send_all) => {}
            () = events.closed() => {}
        }
    }

    fn last(&self, state: State) -> Vec<Bytes> {
        let mut last = Vec::new();
        if state == State::Completed {
            last.push(event(&self.part(None)));
        } else {
            last.push(event(&error_body("the job failed")));
        }
        if self.include_usage {
            let mut usage = self.head("chat.completion.chunk", "text_completion");
            usage["choices"] = json!([]);
            usage["usage"] = self.usage();
            last.push(event(&usage));
        }
        last.push(Bytes::from_static(b"data: [DONE]\n\n"));
        last
    }

    fn head(&self, chat: &str, completion: &str) -> Value {
        let (prefix, object) = match self.kind {
            OpenAiRoute::Completion => ("cmpl", completion),
            _ => ("chatcmpl", chat),
        };
        json!({
            "id": format!("{prefix}-{}", self.job),
            "object": object,
            "created": self.created,
            "model": self.model,
        })
    }

    /// One word of a stream, or its end.
    fn part(&self, word: Option<&String>) -> Value {
        let mut part = self.head("chat.completion.chunk", "text_completion");
        let reason = if word.is_some() { None } else { Some("stop") };
        let choice = match (self.kind, word) {
            (OpenAiRoute::Completion, word) => json!({
                "index": 0,
                "text": word.map_or("", String::as_str),
                "finish_reason": reason,
            }),
            (_, Some(word)) => json!({
                "index": 0,
                "delta": {"role": "assistant", "content": word},
                "finish_reason": reason,
            }),
            (_, None) => json!({"index": 0, "delta": {}, "finish_reason": reason}),
        };
        part["choices"] = json!([choice]);
        part
    }

    /// The answer that is not streamed.
    fn whole(&self) -> Value {
        if self.kind == OpenAiRoute::Models {
            let model = json!({
                "id": MODEL,
                "object": "model",
                "created": self.created,
                "owned_by": "podgate",
            });
            return json!({"object": "list", "data": [model]});
        }
        let mut whole = self.head("chat.completion", "text_completion");
        let text = self.words.concat();
        whole["choices"] = match self.kind {
            OpenAiRoute::Completion => json!([{"index": 0, "text": text, "finish_reason": "stop"}]),
            _ => json!([{
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }]),
        };
        whole["usage"] = self.usage();
        whole
    }

    /// A word is a token here.
    fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.words.len(),
            "total_tokens": self.prompt_tokens + self.words.len(),
        })
    }
}

fn reason(view: &View) -> &str {
    view.error.as_deref().unwrap_or("the job did not complete")
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn error_body(message: &str) -> Value {
    json!({"error": {"message": message, "type": "server_error", "param": null, "code": null}})
}

fn error(status: StatusCode, message: &str) -> Answer {
    Answer::other(status, &error_body(message))
}
