"""The server as a process: keys, operations, clients that leave, signals, hostile bodies, bad folders. Standard library."""
import concurrent.futures
import http.client
import json
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from harness import DEMO, GOLDEN, JSON, MOECTL, ROOT, Server, environment, events

HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
ENDLESS = {**HELLO, "max_tokens": 2000, "ignore_eos": True}


class Requests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_hostile_bodies_get_400_and_the_server_lives(self):
        messages = b'"messages":[{"role":"user","content":"Hi"}]'
        bodies = [b"", b"{", b"[]", b"{" + messages + b"} trailing", b"{" + messages + b',"temperature":NaN}',
                  b"{" + messages + b',"temperature":1e400}', b"{" + messages + b',"n":1,"n":1}',
                  b'{"messages":[{"role":"user","content":"\xff"}]}', b'{"messages":[{"role":"user","content":"\\ud800"}]}',
                  b"{" + messages + b',"x":' + b"[" * 100000, b"{" + messages + b',"x":' + b'{"a":' * 100000,
                  b'{"messages":[]}', b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://127.0.0.1:1/"}}]}]}',
                  b"{" + messages + b',"kv_transfer_params":{"remote_host":"127.0.0.1"}}',
                  b"{" + messages + b',"chat_template":"{{ 1 }}"}', b"{" + messages + b',"max_tokens":9223372036854775808}']
        for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
            for body in bodies:
                reply = self.server.post(path, body)
                self.assertEqual(reply.status, 400, (path, body[:80], reply.body))
                self.assertEqual(reply.error()["type"], "invalid_request_error")
                self.assertEqual(set(reply.error()), {"message", "type", "param", "code"})
        self.assertEqual(self.server.post("/v1/chat/completions", HELLO).status, 200)

    def test_paths_methods_content_types(self):
        self.assertEqual(self.server.get("/nothing").status, 404)
        reply = self.server.get("/v1/chat/completions")
        self.assertEqual((reply.status, reply.headers["allow"]), (405, "POST"))
        reply = self.server.post("/v1/chat/completions", HELLO, {"Content-Type": "text/plain"})
        self.assertEqual(reply.status, 415)
        for admin in ("/drain", "/flush_cache", "/server_info"):
            self.assertEqual(self.server.post(admin, b"", {}).status, 404, "administration is on the operations port only")
        reply = self.server.post("/v1/chat/completions", HELLO, {**JSON, "X-Request-Id": "my-id.1"})
        self.assertEqual(reply.headers["x-request-id"], "my-id.1")

    def test_the_missions_request(self):
        body = {"model": "", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1024}
        for path in ("/v1/chat/completions", "/api/predict/my_service/v1/chat/completions"):
            reply = self.server.post(path, body)
            self.assertEqual(reply.status, 200, reply.body)
        self.assertEqual(self.server.get("/api/predict/my_service/v1/models").status, 200)
        self.assertEqual(self.server.get("/api/predict/my_service/v1/models/demo").status, 200)
        self.assertEqual(self.server.get("/api/predict/my_service/v1/chat/completions").status, 405)
        self.assertEqual(self.server.get("/api/predict/my_service/nothing").status, 404)
        self.assertEqual(self.server.get("/api/predict/").status, 404)

    def test_operations(self):
        for base in (self.server.url, self.server.ops):
            for path in ("/health", "/liveness", "/readiness", "/version", "/load"):
                reply = self.server.get(path, base=base)
                self.assertEqual(reply.status, 200, path)
                reply.json()
            reply = self.server.get("/metrics", base=base)
            self.assertTrue(reply.headers["content-type"].startswith("text/plain; version=0.0.4"))
            self.assertIn(b"# TYPE moectl_time_to_first_token_seconds histogram", reply.body)
        info = self.server.get("/server_info", base=self.server.ops).json()
        self.assertEqual((info["state"], info["architecture"], info["vocab_size"]), ("ready", "deepseek_v3", 4096))
        self.assertEqual((info["parallelism"], info["all2all_backend"]), ({"ep_size": 1, "dp_size": 1, "tp_size": 1}, None))
        before = self.server.metric('moectl_requests_total{outcome="success"}')
        self.server.post("/v1/chat/completions", HELLO)
        self.server.wait_until(lambda: self.server.metric('moectl_requests_total{outcome="success"}') == before + 1, "counted")
        self.assertEqual(self.server.post("/flush_cache", b"", {}, base=self.server.ops).status, 200)
        self.assertEqual(self.server.metric("moectl_kv_cache_pages_cached"), 0)

    def test_the_load_of_the_experts(self):
        tokens = 'moectl_expert_tokens_total{layer="%d"}'
        self.server.post("/v1/completions", {"prompt": [5], "max_tokens": 2, "ignore_eos": True})  # layers without tokens have no series
        before = self.server.metric(tokens % 1)
        self.server.post("/v1/completions", {"prompt": list(range(100, 170)), "max_tokens": 5, "ignore_eos": True})
        for layer in range(1, 6):  # 4 experts per token; the last token is not computed
            self.assertEqual(self.server.metric(tokens % layer), before + 4 * (70 + 5 - 1))
            load = self.server.metric(f'moectl_expert_load{{layer="{layer}"}}')
            self.assertTrue(1 / 32 <= load <= 1, load)
        text = self.server.get("/metrics").body.decode()
        self.assertEqual(text.count("moectl_expert_load{"), 5, "none of the dense layer, none of the MTP module")
        self.assertNotIn("moectl_expert_rank_load", text)  # of several ranks

    def test_tokenize_and_back(self):
        case = GOLDEN[2]
        reply = self.server.post("/tokenize", {"messages": case["messages"]}).json()
        self.assertEqual((reply["tokens"], reply["count"]), (case["prompt_ids"], len(case["prompt_ids"])))
        self.assertEqual(self.server.post("/tokenize", {"prompt": case["prompt"]}).json()["tokens"], case["prompt_ids"])
        self.assertEqual(self.server.post("/detokenize", {"tokens": case["prompt_ids"]}).json()["prompt"], case["prompt"])

    def test_stream_ends_with_its_mark(self):
        connection = self.server.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}), JSON)
        response = connection.getresponse()
        self.assertTrue(response.getheader("content-type").startswith("text/event-stream"))
        data = list(events(response))
        self.assertEqual(data[-1], "[DONE]")
        self.assertEqual(json.loads(data[-2])["choices"][0]["finish_reason"], "stop")
        connection.close()

    def test_prompts_and_answers_are_not_logged(self):
        secret = "xyzzy-plugh"
        self.server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}]})
        self.server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": secret}], "n": 99})
        self.assertIn("/v1/chat/completions 200", self.server.logged())
        self.assertNotIn(secret, self.server.logged())


class Leaving(unittest.TestCase):
    def test_a_client_that_leaves_frees_its_pages(self):
        with Server("--no-enable-prefix-caching") as server:
            baseline = server.metric("moectl_kv_cache_pages_used")
            for stream in (True, False):
                connection = server.connect()
                connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": stream, "n": 4}), JSON)
                if stream:
                    response = connection.getresponse()
                    for _ in range(12):
                        response.readline()
                else:
                    server.wait_until(lambda: server.metric("moectl_num_requests_running") == 4, "running")
                self.assertGreater(server.metric("moectl_kv_cache_pages_used"), baseline)
                connection.sock.shutdown(socket.SHUT_RDWR)
                connection.close()
                server.wait_until(lambda: server.metric("moectl_kv_cache_pages_used") == baseline, "pages return")
                server.wait_until(lambda: server.metric("moectl_requests_in_flight") == 0, "request ends")
            self.assertEqual(server.metric('moectl_requests_total{outcome="cancelled"}'), 2)
            self.assertEqual(server.metric('moectl_requests_total{outcome="success"}'), 0)


class Keys(unittest.TestCase):
    def test_every_route_of_the_data_port_needs_a_key(self):
        with Server("--api-key", "s3cret-key") as server:
            routes = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize"),
                      ("POST", "/detokenize"), ("GET", "/metrics"), ("GET", "/load"), ("GET", "/nothing"),
                      ("GET", "/api/predict/x/v1/models")]
            wrong = ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": "s3cret-ke"},
                     {"Authorization": "s3cret-key1"})
            for method, path in routes:
                for headers in wrong:
                    reply = server.request(method, path, "{}" if method == "POST" else None, {**JSON, **headers})
                    self.assertEqual(reply.status, 401, (path, headers))
                    self.assertEqual((reply.error()["type"], reply.error()["code"]), ("authentication_error", "invalid_api_key"))
            for headers in ({"Authorization": "Bearer s3cret-key"}, {"Authorization": "bearer s3cret-key"}, {"Authorization": "s3cret-key"}):
                self.assertEqual(server.request("GET", "/v1/models", headers=headers).status, 200)
            for path in ("/health", "/liveness", "/readiness"):
                self.assertEqual(server.get(path).status, 200, "probes know no key")
            self.assertEqual(server.get("/health", base=server.ops).status, 200)
            self.assertNotIn("s3cret", server.logged())


class TokenIdsOnly(unittest.TestCase):
    def test_without_a_tokenizer(self):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
                shutil.copy(DEMO / name, folder)
            for shard in DEMO.glob("*.safetensors"):
                Path(folder, shard.name).symlink_to(shard)
            with Server("--skip-tokenizer-init", model=folder) as server:
                case = GOLDEN[0]
                body = {"prompt": case["prompt_ids"], "max_tokens": 100, "temperature": 0, "logprobs": 1}
                choice = server.post("/v1/completions", body).json()["choices"][0]
                self.assertEqual((choice["token_ids"], choice["text"]), (case["output_ids"], ""))
                self.assertEqual(choice["logprobs"]["tokens"][0], f"token_id:{case['output_ids'][0]}")
                for path, refused in (("/v1/completions", {"prompt": "text"}), ("/v1/chat/completions", HELLO),
                                      ("/v1/completions", {**body, "stop": "x"})):
                    reply = server.post(path, refused)
                    self.assertEqual(reply.status, 400)
                    self.assertIn("--skip-tokenizer-init", reply.error()["message"])


class GoingDown(unittest.TestCase):
    def start_stream(self, server):
        connection = server.connect()
        connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": True}), JSON)
        response = connection.getresponse()
        response.readline()
        return connection, response

    def test_sigterm_lets_streams_finish_and_refuses_new_requests(self):
        with Server("--shutdown-timeout", "500") as server:
            streams = [self.start_stream(server) for _ in range(8)]
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: server.get("/readiness", base=server.ops).status == 503, "not ready any more")
            self.assertEqual(server.get("/liveness", base=server.ops).status, 200)
            reply = server.post("/v1/chat/completions", HELLO)
            self.assertEqual(reply.status, 503)
            self.assertIn("retry-after", reply.headers)
            for connection, response in streams:
                data = list(events(response))
                self.assertEqual(data[-1], "[DONE]", server.logged())
                self.assertEqual(json.loads(data[-2])["choices"][0]["finish_reason"], "length")
                connection.close()
            self.assertEqual(server.process.wait(500), 0)
            self.assertEqual(server.process.stdout.read(), "", "the ready line is all there is on stdout")

    def test_after_the_timeout_streams_are_cut_without_the_end_mark(self):
        with Server("--shutdown-timeout", "0") as server:
            connection, response = self.start_stream(server)
            self.assertEqual(server.terminate(), 0)
            data = []
            with self.assertRaises((http.client.IncompleteRead, ConnectionError)):
                for line in events(response):
                    data.append(line)
                raise http.client.IncompleteRead(b"") if "[DONE]" not in data else AssertionError("a clean end")
            self.assertNotIn("[DONE]", data)
            connection.close()

    def test_ctrl_c_exits_130(self):
        with Server() as server:
            self.assertEqual(server.terminate(signal.SIGINT), 130)

    def test_a_second_signal_forces(self):
        with Server() as server:
            connection, _ = self.start_stream(server)
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: server.get("/readiness", base=server.ops).status == 503, "draining")
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(60), 1)
            connection.close()

    def test_drain(self):
        with Server() as server:
            self.assertEqual(server.post("/drain", b"", {}, base=server.ops).status, 200)
            self.assertEqual(server.get("/readiness").status, 503)
            self.assertEqual(server.get("/health").status, 200)
            self.assertEqual(server.post("/v1/completions", {"prompt": "a"}).status, 503)
            self.assertEqual(server.terminate(), 0)


class NotStarting(unittest.TestCase):
    def fails(self, status, *arguments):
        result = subprocess.run([MOECTL, "serve-decode", *arguments], cwd=ROOT, env=environment(), capture_output=True,
                                text=True, timeout=60, stdin=subprocess.DEVNULL)
        self.assertEqual(result.returncode, status, result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertIn("moectl: error: ", result.stderr)
        return result.stderr

    def test_port_in_use(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            self.assertIn(port, self.fails(1, str(DEMO), "--port", port))

    def test_bad_folders(self):
        self.assertIn("no/such/folder", self.fails(1, "no/such/folder", "--port", "0"))
        with tempfile.TemporaryDirectory() as folder:
            self.fails(65, folder, "--port", "0")
            for file in DEMO.iterdir():
                Path(folder, file.name).symlink_to(file)
            tokenizer = Path(folder, "tokenizer.json")
            tokenizer.unlink()
            self.assertIn("tokenizer.json", self.fails(65, folder, "--port", "0"))
            tokenizer.write_text("{}")
            self.assertIn("tokenizer.json", self.fails(65, folder, "--port", "0"))
        self.assertIn("reasoning", self.fails(2, str(DEMO), "--port", "0", "--reasoning-parser", "qwen9"))


class Load(unittest.TestCase):
    def test_many_clients_and_leavers_at_once(self):
        """Answers are right, and everything returns to its baseline, while others come, leave and misbehave."""
        with Server() as server:
            threads = threading.active_count()
            case = GOLDEN[2]

            def good(_):
                reply = server.post("/v1/chat/completions", {"messages": case["messages"], "temperature": 0})
                return reply.json()["choices"][0]["message"]["content"]

            def leaver(_):
                connection = server.connect()
                connection.request("POST", "/v1/chat/completions", json.dumps({**ENDLESS, "stream": True}), JSON)
                connection.getresponse().readline()
                connection.close()

            def bad(_):
                return server.post("/v1/chat/completions", b'{"messages": 1}').status

            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                answers, left, refused = pool.map(good, range(24)), pool.map(leaver, range(12)), pool.map(bad, range(24))
                self.assertEqual(set(answers), {"384 + 157 = 541"})
                self.assertEqual(set(refused), {400})
                list(left)
            server.wait_until(lambda: server.metric("moectl_requests_in_flight") == 0, "no request is left")
            server.wait_until(lambda: server.metric("moectl_kv_cache_pages_used") == 0, "no page is held")
            outcome = lambda name: server.metric(f'moectl_requests_total{{outcome="{name}"}}')
            self.assertEqual([outcome(o) for o in ("success", "refused", "cancelled", "failed")], [24, 24, 12, 0])
            self.assertEqual(threading.active_count(), threads)
            self.assertEqual(server.terminate(), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
