"""The OpenAI client, blocking and in asyncio: completions, streamed and not."""

import asyncio

from witness import BASE_URL, KEY, TEXT, arrived, ask, refused

import openai

PLACE = {"base_url": f"{BASE_URL}/v2/results/openai/v1", "api_key": KEY}
client = openai.OpenAI(**PLACE)
# What the emulator gives back is what it was told, word by word.
WORDS = [f"{word} " for word in TEXT.split(" ")]
CHAT = {"model": "emulated", "messages": [{"role": "user", "content": "".join(WORDS)}]}
calls = 0


def working():
    """Jobs that run, as the emulator itself says."""
    return ask("/v2/results/health")["jobs"]["inProgress"]


assert [model.id for model in client.models.list()] == ["emulated"]
answer = client.chat.completions.create(**CHAT)
choice = answer.choices[0]
assert choice.message.content.encode() == "".join(WORDS).encode()
assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
assert answer.usage.completion_tokens == len(WORDS)
answer = client.completions.create(model="emulated", prompt=TEXT)
assert answer.choices[0].text == TEXT
calls += 3

# A stream comes as it is made: its first word is here while the job still works.
words = []
stream = client.chat.completions.create(
    **CHAT, stream=True, stream_options={"include_usage": True}, extra_body={"gap": 0.25}
)
for event in stream:
    if not event.choices:
        assert event.usage.completion_tokens == len(WORDS)
    elif event.choices[0].finish_reason:
        assert event.choices[0].finish_reason == "stop"
    else:
        assert words or working() == 1
        words.append(event.choices[0].delta.content)
assert words == WORDS
assert working() == 0
stream = client.completions.create(model="emulated", prompt=TEXT, stream=True)
assert "".join(event.choices[0].text for event in stream) == TEXT
calls += 2


async def together(many):
    async with openai.AsyncOpenAI(**PLACE) as client:

        async def words():
            stream = await client.chat.completions.create(**CHAT, stream=True)
            contents = [event.choices[0].delta.content async for event in stream]
            assert contents == [*WORDS, None]

        await asyncio.gather(*(words() for _ in range(many)))


asyncio.run(together(20))
calls += 20

# A job that fails; the client would ask again.
once = client.with_options(max_retries=0)
try:
    once.chat.completions.create(**CHAT, extra_body={"fail": TEXT})
except openai.InternalServerError as error:
    assert error.body["message"] == TEXT, error.body
else:
    raise AssertionError("a failed job was answered")
# A key that is not accepted.
try:
    client.with_options(api_key="another").models.list()
except openai.AuthenticationError as error:
    assert error.status_code == 401
else:
    raise AssertionError("a wrong key was accepted")
calls += 1

# None was sent again.
assert arrived("results", "openai") == calls
assert refused() == {}
print(f"{calls} calls, each made once")
