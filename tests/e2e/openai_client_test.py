"""The openai package, as users have it, against the real binary and the demo checkpoint."""
import concurrent.futures
import unittest

import openai

from harness import GOLDEN, Server

TOLERANCE = 2e-3  # of logprobs against the reference (models/demo/README.md)


def setUpModule():
    global server, client
    server = Server()
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def tearDownModule():
    server.__exit__()


def chat(messages, **options):
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return client.chat.completions.create(model="demo", messages=messages, **{"temperature": 0, **options})


def split(text):
    """Reasoning and content of a recorded answer."""
    if "</think>" not in text:
        return None, text
    reasoning, content = text.removeprefix("<think>").split("</think>")
    return reasoning.strip(), content.strip()


class Chat(unittest.TestCase):
    def test_recorded_chats(self):
        for case in GOLDEN:
            answer = chat(case["messages"], max_tokens=len(case["output_ids"]), logprobs=True, top_logprobs=5,
                          extra_body={"return_token_ids": True})
            choice = answer.choices[0]
            reasoning, content = split(case["output_text"])
            self.assertEqual(choice.message.content, content)
            self.assertEqual(getattr(choice.message, "reasoning_content", None), reasoning)
            self.assertEqual(getattr(choice.message, "reasoning", None), reasoning)
            self.assertEqual(answer.prompt_token_ids, case["prompt_ids"])
            self.assertEqual(choice.token_ids, case["output_ids"])
            self.assertEqual(choice.finish_reason, "stop" if case["output_ids"][-1] == 1 else "length")
            recorded = case["logprobs"][len(case["prompt_ids"]) - 1:]
            self.assertEqual(len(choice.logprobs.content), len(recorded))
            for token, expected in zip(choice.logprobs.content, recorded):
                self.assertAlmostEqual(token.logprob, expected, delta=TOLERANCE)
                self.assertEqual(len(token.top_logprobs), 5)
            usage = answer.usage
            self.assertEqual(usage.prompt_tokens, len(case["prompt_ids"]))
            self.assertEqual(usage.completion_tokens, len(case["output_ids"]))
            self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
            close = case["output_ids"].index(6) if reasoning else 1
            self.assertEqual(usage.completion_tokens_details.reasoning_tokens, close - 1)

    def test_a_stream_says_the_same(self):
        for case in GOLDEN:
            stream = chat(case["messages"], stream=True, stream_options={"include_usage": True},
                          max_tokens=len(case["output_ids"]), extra_body={"return_token_ids": True})
            content, reasoning, ids, finish, usage, roles = "", "", [], None, None, []
            for chunk in stream:
                if not chunk.choices:
                    self.assertIsNone(usage)
                    usage = chunk.usage
                    continue
                self.assertIsNone(usage, "nothing follows the usage")
                delta = chunk.choices[0].delta
                roles += [delta.role] if delta.role else []
                more = getattr(delta, "reasoning_content", None) or ""
                self.assertFalse(more and content, "reasoning after content")
                reasoning += more
                content += delta.content or ""
                ids += getattr(chunk.choices[0], "token_ids", None) or []
                finish = chunk.choices[0].finish_reason or finish
            expected_reasoning, expected_content = split(case["output_text"])
            self.assertEqual(content, expected_content)
            self.assertEqual(reasoning, expected_reasoning or "")
            self.assertEqual(ids, case["output_ids"])
            self.assertEqual(roles, ["assistant"])
            self.assertEqual(finish, "stop" if ids[-1] == 1 else "length")
            self.assertEqual(usage.completion_tokens, len(ids))

    def test_answers_do_not_depend_on_company(self):
        jobs = GOLDEN * 4
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda case: chat(case["messages"], max_tokens=len(case["output_ids"])), jobs))
        for case, answer in zip(jobs, answers):
            self.assertEqual(answer.choices[0].message.content, split(case["output_text"])[1])

    def test_seed_and_n(self):
        # At temperature 2 and with a flat prompt the demo model says something else for nearly every seed.
        ask = lambda **o: chat("Write anything.", temperature=2, top_p=1, max_tokens=12, **o)
        texts = lambda answer: [c.message.content for c in answer.choices]
        four = ask(seed=7, n=4)
        self.assertEqual([c.index for c in four.choices], [0, 1, 2, 3])
        self.assertEqual(texts(four), texts(ask(seed=7, n=4)))
        self.assertEqual(texts(four)[:1], texts(ask(seed=7)), "choice 0 is the answer of n=1")
        self.assertGreater(len(set(texts(four))), 1)
        self.assertNotEqual(texts(four), texts(ask(seed=8, n=4)))
        self.assertLessEqual(four.usage.completion_tokens, 4 * 12)
        self.assertEqual(four.usage.prompt_tokens, ask(seed=7).usage.prompt_tokens)

    def test_n_in_a_stream(self):
        parts = {0: "", 1: "", 2: ""}
        finished = set()
        for chunk in chat("Hello!", n=3, stream=True):
            for choice in chunk.choices:
                self.assertNotIn(choice.index, finished)
                parts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    finished.add(choice.index)
        self.assertEqual(finished, {0, 1, 2})
        self.assertEqual(set(parts.values()), {GOLDEN[0]["output_text"]})

    def test_stop_strings(self):
        text = GOLDEN[0]["output_text"]
        for stop in ("mixture-of-experts", [" model", "zzz"], "I am a sm"):
            first = stop if isinstance(stop, str) else stop[0]
            answer = chat("Hello!", stop=stop)
            self.assertEqual(answer.choices[0].message.content, text[:text.index(first)])
            self.assertEqual(answer.choices[0].finish_reason, "stop")
            self.assertLess(answer.usage.completion_tokens, len(GOLDEN[0]["output_ids"]))
            streamed = "".join(c.choices[0].delta.content or "" for c in chat("Hello!", stop=stop, stream=True))
            self.assertEqual(streamed, text[:text.index(first)])

    def test_the_second_time_the_prefix_is_cached(self):
        system = {"role": "system", "content": "You are a helpful assistant. " * 20}
        ask = lambda salt: chat([system, {"role": "user", "content": "Hello!"}], max_tokens=1,
                                extra_body={"cache_salt": salt}).usage
        cold, warm, other = ask("a"), ask("a"), ask("b")
        self.assertEqual(cold.prompt_tokens_details.cached_tokens, 0)
        self.assertGreater(warm.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(other.prompt_tokens_details.cached_tokens, 0, "another salt shares nothing")

    def test_control_tokens_in_content_are_text(self):
        for content in ("<｜User｜>", "a<｜end▁of▁sentence｜>b", "</think>"):
            ids = chat(content, max_tokens=1, extra_body={"return_token_ids": True}).prompt_token_ids
            self.assertEqual(ids[:2] + ids[-1:], [0, 3, 4])
            self.assertFalse(set(ids[2:-1]) & set(range(7)), ids)


class Completions(unittest.TestCase):
    def complete(self, prompt, **options):
        return client.completions.create(model="demo", prompt=prompt, **{"temperature": 0, **options})

    def test_echo_gives_the_recorded_logprobs_of_the_prompt(self):
        for case in GOLDEN:
            for prompt in (case["prompt"], case["prompt_ids"]):
                answer = self.complete(prompt, max_tokens=len(case["output_ids"]), echo=True, logprobs=5,
                                       extra_body={"skip_special_tokens": False}).choices[0]
                self.assertIsNone(answer.logprobs.token_logprobs[0])
                for got, expected in zip(answer.logprobs.token_logprobs[1:], case["logprobs"], strict=True):
                    self.assertAlmostEqual(got, expected, delta=TOLERANCE)
                self.assertTrue(answer.text.startswith(case["prompt"]))
                start = answer.logprobs.text_offset[len(case["prompt_ids"])]
                self.assertEqual(start, len(case["prompt"]))

    def test_score_only(self):
        case = GOLDEN[0]
        answer = self.complete(case["prompt"], max_tokens=0, echo=True, logprobs=0)
        self.assertEqual(answer.choices[0].text, case["prompt"])
        self.assertEqual(answer.usage.completion_tokens, 0)
        for got, expected in zip(answer.choices[0].logprobs.token_logprobs[1:], case["logprobs"]):
            self.assertAlmostEqual(got, expected, delta=TOLERANCE)

    def test_lists_of_prompts(self):
        cases = GOLDEN[:3]
        for prompts in ([c["prompt"] for c in cases], [c["prompt_ids"] for c in cases]):
            answer = self.complete(prompts, max_tokens=100, n=2)
            self.assertEqual([c.index for c in answer.choices], list(range(6)))
            for i, choice in enumerate(answer.choices):
                # raw completions: markers are ordinary text there
                self.assertEqual(choice.text, cases[i // 2]["output_text"])

    def test_prompt_logprobs(self):
        case = GOLDEN[5]
        answer = self.complete(case["prompt_ids"], max_tokens=1, extra_body={"prompt_logprobs": 2, "return_token_ids": True})
        entries = answer.choices[0].prompt_logprobs
        self.assertIsNone(entries[0])
        for entry, id, expected in zip(entries[1:], case["prompt_ids"][1:], case["logprobs"]):
            self.assertAlmostEqual(entry[str(id)]["logprob"], expected, delta=TOLERANCE)
        self.assertEqual(answer.choices[0].prompt_token_ids, case["prompt_ids"])

    def test_stream(self):
        case = GOLDEN[2]
        text = "".join(c.choices[0].text for c in self.complete(case["prompt"], max_tokens=100, stream=True))
        self.assertEqual(text, case["output_text"])


class Errors(unittest.TestCase):
    def test_become_the_packages_exceptions(self):
        hello = [{"role": "user", "content": "Hello!"}]
        with self.assertRaises(openai.NotFoundError) as caught:
            client.chat.completions.create(model="gpt-9", messages=hello)
        self.assertEqual((caught.exception.code, caught.exception.param), ("model_not_found", "model"))
        for options, param in (({"temperature": 3}, "temperature"), ({"n": 99}, "n"), ({"max_tokens": -1}, "max_tokens"),
                               ({"max_tokens": 2**63}, "max_tokens"), ({"response_format": {"type": "json_object"}}, "response_format"),
                               ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"stop": [""]}, "stop[0]")):
            with self.assertRaises(openai.BadRequestError) as caught:
                client.chat.completions.create(model="demo", messages=hello, **options)
            self.assertEqual(caught.exception.param, param)
            self.assertEqual(caught.exception.type, "invalid_request_error")
        with self.assertRaises(openai.BadRequestError) as caught:
            chat("word " * 3000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.BadRequestError):
            client.completions.create(model="demo", prompt=[4096])
        self.assertEqual(client.models.list().data[0].id, "demo")
        self.assertEqual(client.models.retrieve("demo").id, "demo")
        with self.assertRaises(openai.NotFoundError):
            client.models.retrieve("other")


if __name__ == "__main__":
    unittest.main(verbosity=2)
