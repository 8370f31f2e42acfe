"""What a client sees, the same from a combined server and from a router over prefill and decode."""

import contextlib
import threading

import harness
from harness import REFERENCE, Case, Combined, Pair, Stream, certain_tokens, greedy, request

LONG = greedy(3000, ignore_eos=True)
CAPITAL = next(prompt for prompt in REFERENCE if prompt["name"] == "chat-capital")
EOS = 1


class Serving(Case):
    """The tests; the classes below say on what."""

    def test_greedy_tokens_are_the_references(self):
        for prompt in REFERENCE:
            with self.subTest(prompt["name"]):
                answer = self.generate({"input_ids": prompt["ids"], "sampling_params": greedy(64, ignore_eos=True)})
                expected = certain_tokens(prompt)
                self.assertEqual(answer["output_ids"][: len(expected)], expected)
                self.assertEqual(len(answer["output_ids"]), 64)
                self.assertEqual(answer["meta_info"]["prompt_tokens"], len(prompt["ids"]))
                self.assertEqual(answer["meta_info"]["completion_tokens"], 64)
                self.assertEqual(answer["meta_info"]["finish_reason"], {"type": "length", "length": 64})
        self.wait_idle()

    def test_text_is_tokenized_with_begin_of_sentence(self):
        for prompt in REFERENCE:
            if "text" in prompt and len(certain_tokens(prompt)) >= 8 and not prompt["name"].startswith("chat"):
                with self.subTest(prompt["name"]):
                    answer = self.generate({"text": prompt["text"], "sampling_params": greedy(8, ignore_eos=True)})
                    self.assertEqual(answer["meta_info"]["prompt_tokens"], len(prompt["ids"]))
                    self.assertEqual(answer["output_ids"], prompt["greedy"][:8])

    def test_a_stop_token_ends_and_counts(self):
        answer = self.generate({"input_ids": CAPITAL["ids"], "sampling_params": greedy(64)})
        expected = CAPITAL["greedy"][: CAPITAL["greedy"].index(EOS) + 1]
        self.assertEqual(answer["output_ids"], expected)
        self.assertEqual(answer["meta_info"]["completion_tokens"], len(expected))
        self.assertEqual(answer["meta_info"]["finish_reason"], {"type": "stop", "matched": EOS})
        self.assertEqual(answer["text"], "The capital of France is Paris.")

    def test_streaming_grows_by_tokens_and_ends_with_done(self):
        body = {"input_ids": CAPITAL["ids"], "sampling_params": greedy(64)}
        whole = self.generate(body)
        with Stream(self.port, "/generate", {**body, "stream": True}) as stream:
            self.assertEqual(stream.status, 200)
            self.assertIn("text/event-stream", stream.response.getheader("content-type"))
            events = list(stream)
            self.assertTrue(stream.done)
        self.assertEqual(len(events[0]["output_ids"]), 1, "the first token has an event of its own")
        for before, after in zip(events, events[1:]):
            self.assertTrue(after["text"].startswith(before["text"]), (before, after))
            self.assertEqual(after["output_ids"][: len(before["output_ids"])], before["output_ids"])
            self.assertIsNone(before["meta_info"]["finish_reason"])
        self.assertEqual(events[-1]["text"], whole["text"])
        self.assertEqual(events[-1]["output_ids"], whole["output_ids"])
        self.assertEqual(events[-1]["meta_info"]["finish_reason"], whole["meta_info"]["finish_reason"])
        self.assertGreater(events[-1]["meta_info"]["e2e_latency"], 0)

    def test_a_batch_answers_in_order_like_single_requests(self):
        prompts = [prompt for prompt in REFERENCE if len(certain_tokens(prompt)) >= 12][:6]
        answers = self.generate(
            {"input_ids": [prompt["ids"] for prompt in prompts], "sampling_params": greedy(12, ignore_eos=True)}
        )
        self.assertEqual([answer["output_ids"] for answer in answers], [prompt["greedy"][:12] for prompt in prompts])
        texts = self.generate(
            {
                "text": ["The capital", "In the beginning"],
                "rid": ["one", "two"],
                "sampling_params": [greedy(3, ignore_eos=True), greedy(5, ignore_eos=True)],
            }
        )
        self.assertEqual([answer["meta_info"]["completion_tokens"] for answer in texts], [3, 5])
        self.assertEqual([answer["meta_info"]["id"] for answer in texts], ["one", "two"])

    def test_a_streamed_batch_interleaves_by_index_and_is_done_once(self):
        with Stream(
            self.port,
            "/generate",
            {
                "input_ids": [CAPITAL["ids"], REFERENCE[2]["ids"]],
                "stream": True,
                "sampling_params": greedy(6, ignore_eos=True),
            },
        ) as stream:
            events = list(stream)
            self.assertTrue(stream.done)
        last = {event["index"]: event["output_ids"] for event in events}
        self.assertEqual(last, {0: CAPITAL["greedy"][:6], 1: REFERENCE[2]["greedy"][:6]})

    def test_n_gives_so_many_answers(self):
        answers = self.generate({"input_ids": CAPITAL["ids"], "sampling_params": greedy(5, n=3)})
        self.assertEqual([answer["output_ids"] for answer in answers], [CAPITAL["greedy"][:5]] * 3)

    def test_many_at_once_give_the_same_as_alone(self):
        prompts = [prompt for prompt in REFERENCE if len(certain_tokens(prompt)) >= 16]
        results = [None] * (2 * len(prompts))

        def ask(i):
            body = {"input_ids": prompts[i % len(prompts)]["ids"], "sampling_params": greedy(16, ignore_eos=True)}
            results[i] = request(self.port, "POST", "/generate", body)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(results))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(harness.REQUEST_DEADLINE_S)
        for i, answer in enumerate(results):
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(answer.json()["output_ids"], prompts[i % len(prompts)]["greedy"][:16])
        self.wait_idle()

    def test_logprobs_have_their_shape(self):
        answer = self.generate(
            {
                "input_ids": CAPITAL["ids"],
                "return_logprob": True,
                "top_logprobs_num": 3,
                "logprob_start_len": 0,
                "return_text_in_logprobs": True,
                "sampling_params": greedy(4),
            }
        )
        meta = answer["meta_info"]
        self.assertEqual([entry[1] for entry in meta["output_token_logprobs"]], answer["output_ids"])
        for chosen, top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"]):
            self.assertEqual(len(top), 3)
            self.assertEqual(top[0][1], chosen[1], "greedy takes the best")
            self.assertAlmostEqual(top[0][0], chosen[0], places=4)
            self.assertGreaterEqual(top[0][0], top[1][0])
            self.assertLessEqual(chosen[0], 0)
            self.assertIsInstance(chosen[2], str)
        self.assertEqual([entry[1] for entry in meta["input_token_logprobs"]], CAPITAL["ids"])
        self.assertIsNone(meta["input_token_logprobs"][0][0])
        self.assertTrue(all(entry[0] <= 0 for entry in meta["input_token_logprobs"][1:]))

    def test_stop_strings_trim_and_are_named(self):
        for name, stop in (("stop", " France"), ("stop_regex", r"\sF[a-z]+")):
            with self.subTest(name):
                answer = self.generate({"input_ids": CAPITAL["ids"], "sampling_params": greedy(64, **{name: stop})})
                self.assertEqual(answer["text"], "The capital of")
                self.assertEqual(answer["meta_info"]["finish_reason"], {"type": "stop", "matched": stop})
        kept = self.generate(
            {"input_ids": CAPITAL["ids"], "sampling_params": greedy(64, stop=["ce is"], no_stop_trim=True)}
        )
        self.assertEqual(kept["text"], "The capital of France is")

    def test_completions(self):
        answer = request(
            self.port,
            "POST",
            "/v1/completions",
            {"model": "any", "prompt": CAPITAL["ids"], "max_tokens": 5, "temperature": 0, "logprobs": 2},
        )
        self.assertEqual(answer.status, 200, answer)
        body = answer.json()
        self.assertEqual(body["object"], "text_completion")
        self.assertEqual(body["choices"][0]["text"], "The capital of France is")
        self.assertEqual(body["choices"][0]["finish_reason"], "length")
        self.assertEqual(len(body["choices"][0]["logprobs"]["token_logprobs"]), 5)
        self.assertEqual(body["usage"]["prompt_tokens"], len(CAPITAL["ids"]))
        self.assertEqual(body["usage"]["total_tokens"], len(CAPITAL["ids"]) + 5)
        with Stream(
            self.port,
            "/v1/completions",
            {
                "model": "any",
                "prompt": CAPITAL["ids"],
                "max_tokens": 5,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ) as stream:
            events = list(stream)
            self.assertTrue(stream.done)
        self.assertEqual(
            "".join(event["choices"][0]["text"] for event in events if event["choices"]), "The capital of France is"
        )
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual(events[-1]["usage"]["completion_tokens"], 5)

    def test_chat(self):
        body = {
            "model": "any",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "temperature": 0,
            "max_tokens": 40,
        }
        answer = request(self.port, "POST", "/v1/chat/completions", body)
        self.assertEqual(answer.status, 200, answer)
        whole = answer.json()
        self.assertEqual(whole["choices"][0]["message"]["content"], "The capital of France is Paris.")
        self.assertEqual((whole["choices"][0]["finish_reason"], whole["choices"][0]["matched_stop"]), ("stop", EOS))
        with Stream(
            self.port, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}}
        ) as stream:
            events = list(stream)
            self.assertTrue(stream.done)
        self.assertEqual(events[0]["choices"][0]["delta"]["role"], "assistant")
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
        self.assertEqual(text, "The capital of France is Paris.")
        self.assertEqual(events[-2]["choices"][0]["finish_reason"], "stop")
        self.assertEqual(events[-1]["usage"], whole["usage"])
        self.assertTrue(all(event["usage"] is None for event in events[:-1]))

    def test_a_client_that_hangs_up_frees_its_blocks(self):
        for path, body in (
            ("/generate", {"text": "Once upon a time", "sampling_params": LONG, "stream": True}),
            ("/v1/completions", {"prompt": "Once", "max_tokens": 3000, "ignore_eos": True, "stream": True}),
        ):
            with self.subTest(path):
                with Stream(self.port, path, body) as stream:
                    next(iter(stream))
                self.wait_idle()

    def test_a_client_that_hangs_up_without_streaming_frees_its_blocks(self):
        with self.assertRaises(TimeoutError), contextlib.suppress(ConnectionError):
            request(
                self.port, "POST", "/generate", {"text": "Once upon a time", "sampling_params": LONG}, deadline_s=0.3
            )
        self.wait_idle()

    def test_abort_request_ends_a_stream(self):
        with Stream(
            self.port, "/generate", {"text": "Once", "rid": "to-abort", "sampling_params": LONG, "stream": True}
        ) as stream:
            events = iter(stream)
            next(events)
            for server in self.deployment.servers:
                self.assertEqual(request(server.port, "POST", "/abort_request", {"rid": "to-abort"}).status, 200)
            rest = list(events)
            self.assertTrue(stream.done)
        self.assertEqual(rest[-1]["meta_info"]["finish_reason"]["type"], "abort")
        self.wait_idle()

    def test_information_endpoints_answer(self):
        models = request(self.port, "GET", "/v1/models").json()
        self.assertEqual(models["object"], "list")
        self.assertEqual(models["data"][0]["max_model_len"], 4096)
        self.assertIn("model_path", request(self.port, "GET", "/get_model_info").json())
        server = self.deployment.servers[-1]
        self.assertEqual(request(server.port, "GET", "/get_load").json()[0]["dp_rank"], 0)
        tokens = request(server.port, "POST", "/tokenize", {"prompt": "Hello, world!"}).json()
        self.assertEqual(tokens["tokens"][-4:], [1497, 14, 1104, 3])
        text = request(server.port, "POST", "/detokenize", {"tokens": [1497, 14, 1104, 3]}).json()
        self.assertEqual(text["text"], "Hello, world!")


class CombinedTest(Serving):
    @classmethod
    def make(cls):
        return Combined()


class PairTest(Serving):
    @classmethod
    def make(cls):
        return Pair()

    def test_decode_computes_no_prompt_token_and_reads_its_bytes(self):
        self.wait_idle()
        before = self.deployment.decode.state()
        prompt = next(prompt for prompt in REFERENCE if prompt["name"] == "long-novel")
        answer = self.generate({"input_ids": prompt["ids"], "sampling_params": greedy(4)})
        self.assertEqual(answer["output_ids"], prompt["greedy"][:4])
        after = self.deployment.decode.state()
        self.assertEqual(after["prompt_tokens_computed"], 0)
        self.assertEqual(after["handovers"], before["handovers"] + 1)
        # 6 layers of 128 + 32 bf16 values for each token of the prompt (blocks of one token here).
        self.assertEqual(after["handover_bytes"] - before["handover_bytes"], len(prompt["ids"]) * 6 * 160 * 4)


class ExactTest(Case):
    """Both deployments beside each other, without prefix cache: the same tokens; with ref kernels the reference's."""

    prompts = REFERENCE

    @classmethod
    def make(cls):
        cls.other = Pair("--disable-radix-cache")
        return Combined("--disable-radix-cache")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.other.wait_ready()

    @classmethod
    def tearDownClass(cls):
        cls.other.close()
        super().tearDownClass()

    def test_combined_and_apart_agree_on_every_token(self):
        for prompt in self.prompts:
            body = {"input_ids": prompt["ids"], "sampling_params": greedy(64, ignore_eos=True)}
            apart = request(self.other.front.port, "POST", "/generate", body)
            self.assertEqual(apart.status, 200, apart)
            self.check(prompt, self.generate(body)["output_ids"], apart.json()["output_ids"])

    def check(self, prompt, combined, apart):
        self.assertEqual(combined, apart, prompt["name"])


class RefKernelsTest(ExactTest):
    prompts = [prompt for prompt in REFERENCE if len(prompt["ids"]) < 500]

    @classmethod
    def make(cls):
        cls.other = Pair("--kernel-backend", "ref")
        return Combined("--kernel-backend", "ref")

    def check(self, prompt, combined, apart):
        self.assertEqual(combined, prompt["greedy"], prompt["name"])
        self.assertEqual(apart, prompt["greedy"], prompt["name"])


del Serving, Case  # only the classes with a deployment are tests

if __name__ == "__main__":
    harness.main()
