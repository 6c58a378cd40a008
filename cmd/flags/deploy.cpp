// The commands `moectl deploy ...` and their flags. Part of the tables of flags.h. They are given on the command line
// or stand in the deployment file: a MOECTL_PORT that is meant for a server must not move a deployment.
#include "cmd/flags/table.h"

namespace moectl {
namespace {

constexpr std::string_view kDeploy = "Deployment", kLogs = "Logs";

using Names = std::vector<std::string_view>;
const Names kUp = {"deploy up"};
const Names kLogsCommand = {"deploy logs"};
const Names kDown = {"deploy down"};
const Names kAll = {"deploy up", "deploy status", "deploy logs", "deploy down"};

std::vector<Flag> up_flags() {
  return {
      {.name = "file",
       .metavar = "FILE",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.file),
       .help = "Deployment file (YAML); flags here win over it",
       .doc = "docs/deploy.md describes it.",
       .sources = Sources::kArgvOnly,
       .completes = Completes::kFile,
       .positional = true},
      {.name = "template",
       .metavar = "NAME",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.template_name),
       .help = "What to start: a router, prefill and decode workers",
       .choices = {"ep-pd"},
       .shown_default = "ep-pd",
       .sources = Sources::kArgvOnly},
      {.name = "model",
       .metavar = "DIR",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.model),
       .help = "Checkpoint folder in Hugging Face layout",
       .shown_default = "models/demo",
       .sources = Sources::kArgvOnly,
       .completes = Completes::kFolder},
      {.name = "prefill",
       .metavar = "N",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.prefill),
       .help = "Prefill workers; 0: decode workers compute prompts too",
       .min = 0,
       .max = 64,
       .shown_default = "1",
       .sources = Sources::kArgvOnly},
      {.name = "decode",
       .metavar = "N",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.decode),
       .help = "Decode workers",
       .min = 1,
       .max = 64,
       .shown_default = "1",
       .sources = Sources::kArgvOnly},
      {.name = "host",
       .metavar = "HOST",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.host),
       .help = "Address the router listens on",
       .doc = "Workers are on loopback.",
       .shown_default = "127.0.0.1",
       .sources = Sources::kArgvOnly},
      {.name = "port",
       .metavar = "N",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.port),
       .help = "Port of the router; 0 lets the system pick one",
       .doc = "Workers take free ports, and keep them when they are restarted.",
       .min = 0,
       .max = 65535,
       .shown_default = "8080",
       .sources = Sources::kArgvOnly},
      {.name = "ready-timeout",
       .metavar = "SECONDS",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.ready_timeout),
       .help = "Longest wait until requests can be answered",
       .doc = "When it is over everything is ended again.",
       .min = 1,
       .max = 86400,
       .sources = Sources::kArgvOnly},
      {.name = "unhealthy-timeout",
       .metavar = "SECONDS",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.unhealthy_timeout),
       .help = "Restart an instance that fails its probes for so long",
       .doc = "Each instance is asked once a second whether it can do its work: one that does not answer within 2 "
              "seconds, or says that its engine stalls or has failed, is unhealthy.",
       .min = 1,
       .max = 86400,
       .shown_default = "30",
       .sources = Sources::kArgvOnly},
      {.name = "dry-run",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.dry_run),
       .help = "Show the plan and start nothing",
       .sources = Sources::kArgvOnly},
      {.name = "yes",
       .short_name = 'y',
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.yes),
       .help = "Do not ask before the start",
       .doc = "Only a terminal is asked.",
       .sources = Sources::kArgvOnly},
      {.name = "foreground",
       .group = kDeploy,
       .commands = kUp,
       .target = VALUE(deploy.foreground),
       .help = "Stay; Ctrl-C ends the deployment",
       .doc = "Without it the command returns when requests can be answered, and a supervisor stays behind.",
       .sources = Sources::kArgvOnly},
  };
}

std::vector<Flag> shared_flags() {
  return {
      {.name = "timeout",
       .metavar = "S",
       .group = kDeploy,
       .commands = kDown,
       .target = VALUE(deploy.stop_timeout),
       .help = "Seconds that running answers get before all is killed",
       .min = 0,
       .max = 86400,
       .sources = Sources::kArgvOnly},
      {.name = "name",
       .metavar = "NAME",
       .group = kDeploy,
       .commands = kAll,
       .target = VALUE(deploy.name),
       .help = "Which deployment; several run beside each other",
       .doc = "Its state and logs are in $XDG_STATE_HOME/moectl/NAME, or ~/.local/state/moectl/NAME.",
       .shown_default = "demo",
       .sources = Sources::kArgvOnly},
  };
}

std::vector<Flag> log_flags() {
  return {
      {.name = "instance",
       .metavar = "ROLE/N",
       .group = kLogs,
       .commands = kLogsCommand,
       .target = VALUE(deploy.instance),
       .help = "Of this instance, or of all of a role",
       .shown_default = "all",
       .sources = Sources::kArgvOnly,
       .positional = true},
      {.name = "since",
       .metavar = "TIME",
       .group = kLogs,
       .commands = kLogsCommand,
       .target = VALUE(deploy.since),
       .help = "Only what was written in the last 90s, 5m, 1h30m, 2d",
       .sources = Sources::kArgvOnly},
      {.name = "grep",
       .metavar = "REGEX",
       .group = kLogs,
       .commands = kLogsCommand,
       .target = VALUE(deploy.grep),
       .help = "Only lines in which this is found",
       .doc = "An ECMAScript expression, looked for in the first 4,096 bytes of a line.",
       .sources = Sources::kArgvOnly},
      {.name = "tail",
       .metavar = "N",
       .group = kLogs,
       .commands = kLogsCommand,
       .target = VALUE(deploy.tail),
       .help = "Only the last N lines of what there is",
       .min = 1,
       .shown_default = "everything",
       .sources = Sources::kArgvOnly},
      {.name = "follow",
       .short_name = 'f',
       .group = kLogs,
       .commands = kLogsCommand,
       .target = VALUE(deploy.follow),
       .help = "Go on with new lines until Ctrl-C",
       .sources = Sources::kArgvOnly},
      {.name = "previous",
       .group = kLogs,
       .commands = kLogsCommand,
       .target = VALUE(deploy.previous),
       .help = "The log from before the last start of an instance",
       .sources = Sources::kArgvOnly},
  };
}

}  // namespace

std::vector<Flag> deploy_flags() {
  std::vector<Flag> all;
  for (auto part : {up_flags(), shared_flags(), log_flags()}) all.insert(all.end(), part.begin(), part.end());
  return all;
}

std::vector<Command> deploy_commands() {
  return {
      {.name = "deploy up",
       .summary = "Start a router, prefill and decode workers here",
       .doc = "Starts a deployment as processes of this machine, from a template or a file, and waits until it answers "
              "requests. The plan is shown first. A supervisor stays behind: it restarts an instance that ended or no "
              "longer works, with growing delays, keeps logs, and ends everything on `moectl deploy down`. Keys for "
              "clients are taken "
              "from MOECTL_API_KEY.",
       .examples = {{"moectl deploy up", "one worker of each role, on the demo model"},
                    {"moectl deploy up --model /data/model --prefill 1 --decode 2 --port 9000", "a PD ratio of 1 to 2"},
                    {"moectl deploy up cluster.yaml --yes", "from a file"}},
       .run = [](const Options& o) { return deploy_up(o.common, o.deploy); }},
      {.name = "deploy status",
       .summary = "Show a deployment and the load of its instances",
       .doc =
           "One line for the whole and one for each instance. The exit code is 0 when all are ready, 1 when some are "
           "not, 69 when nothing runs.",
       .examples = {{"moectl deploy status", "a table"},
                    {"moectl deploy status --json | jq .requests_running", "for scripts"}},
       .run = [](const Options& o) { return deploy_status(o.common, o.deploy); }},
      {.name = "deploy logs",
       .summary = "Show what the instances of a deployment logged",
       .doc = "In the order of time. Logs are of bounded size and stay after `moectl deploy down`.",
       .examples = {{"moectl deploy logs -f", "all instances, as they write"},
                    {"moectl deploy logs decode/0 --since 5m --grep 'warn|error'", "what went wrong lately"},
                    {"moectl deploy logs prefill/0 --previous --tail 20", "the end of a process that was restarted"}},
       .run = [](const Options& o) { return deploy_logs(o.deploy); }},
      {.name = "deploy down",
       .summary = "End a deployment",
       .doc =
           "Running answers may finish; what is left after the time limit is killed. Does nothing when nothing runs.",
       .examples = {{"moectl deploy down", "the deployment named demo"},
                    {"moectl deploy down --name test --timeout 0", "at once"}},
       .run = [](const Options& o) { return deploy_down(o.deploy); }},
  };
}

}  // namespace moectl
