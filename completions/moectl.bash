# bash completion for moectl. Written by `moectl docgen`; do not edit.

_moectl() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]} words='' kind=''
  COMPREPLY=()
  # bash splits --device=cpu at the equals sign.
  if [[ $cur == '=' ]]; then
    cur=''
  elif [[ $prev == '=' ]]; then
    prev=${COMP_WORDS[COMP_CWORD-2]}
  fi
  if (( COMP_CWORD == 1 )); then
    mapfile -t COMPREPLY < <(compgen -W 'serve-decode serve-prefill serve-router inspect bench debug-request deploy --help --version' -- "$cur")
    return
  fi
  if [[ $command == bench ]]; then
    if (( COMP_CWORD == 2 )); then
      mapfile -t COMPREPLY < <(compgen -W 'engine kernels comm serve' -- "$cur")
      return
    fi
    command="bench ${COMP_WORDS[2]}"
  fi
  if [[ $command == deploy ]]; then
    if (( COMP_CWORD == 2 )); then
      mapfile -t COMPREPLY < <(compgen -W 'up status logs down' -- "$cur")
      return
    fi
    command="deploy ${COMP_WORDS[2]}"
  fi
  # The value of a flag.
  case "$command:$prev" in
    'serve-decode:--model') kind='folder' ;;
    'serve-decode:--served-model-name') return ;;
    'serve-decode:--max-model-len') return ;;
    'serve-decode:--reasoning-parser') words='auto none gpt_oss kimi_k2 minimax_m2 ernie45 hunyuan_a13b seed_oss mistral glm45 qwen3 deepseek_r1' ;;
    'serve-decode:--tool-call-parser') words='auto none harmony deepseek_v3 deepseek_v31 kimi_k2 minimax_m2 seed_oss qwen3_coder glm45 hunyuan_a13b longcat hermes mistral' ;;
    'serve-decode:--tensor-parallel-size'|'serve-decode:--tp-size') return ;;
    'serve-decode:--data-parallel-size'|'serve-decode:--dp-size') return ;;
    'serve-decode:--expert-parallel-size'|'serve-decode:--ep-size') return ;;
    'serve-decode:--devices') return ;;
    'serve-decode:--collectives') words='auto p2p nccl' ;;
    'serve-decode:--all2all-backend') words='auto naive low_latency high_throughput' ;;
    'serve-decode:--num-redundant-experts') return ;;
    'serve-decode:--eplb-step-interval') return ;;
    'serve-decode:--max-num-seqs') return ;;
    'serve-decode:--max-num-batched-tokens') return ;;
    'serve-decode:--kv-cache-memory-bytes') return ;;
    'serve-decode:--kv-cache-dtype') words='auto f32 bf16 fp8' ;;
    'serve-decode:--block-size') return ;;
    'serve-decode:--device') words='auto cpu cuda' ;;
    'serve-decode:--cpu-path') words='auto avx512 portable' ;;
    'serve-decode:--threads') return ;;
    'serve-decode:--gpu-memory-utilization') return ;;
    'serve-decode:--shape') return ;;
    'serve-decode:--host') return ;;
    'serve-decode:--port') return ;;
    'serve-decode:--ops-port') return ;;
    'serve-decode:--ops-host') return ;;
    'serve-decode:--api-key') return ;;
    'serve-decode:--ssl-certfile') kind='file' ;;
    'serve-decode:--ssl-keyfile') kind='file' ;;
    'serve-decode:--shutdown-timeout') return ;;
    'serve-decode:--stall-timeout') return ;;
    'serve-decode:--cluster-secret-file') kind='file' ;;
    'serve-decode:--local-prefill-tokens') return ;;
    'serve-decode:--config') kind='file' ;;
    'serve-decode:--log-format') words='text json' ;;
    'serve-decode:--log-level') words='debug info warn error' ;;
    'serve-prefill:--model') kind='folder' ;;
    'serve-prefill:--served-model-name') return ;;
    'serve-prefill:--max-model-len') return ;;
    'serve-prefill:--tensor-parallel-size'|'serve-prefill:--tp-size') return ;;
    'serve-prefill:--data-parallel-size'|'serve-prefill:--dp-size') return ;;
    'serve-prefill:--expert-parallel-size'|'serve-prefill:--ep-size') return ;;
    'serve-prefill:--devices') return ;;
    'serve-prefill:--collectives') words='auto p2p nccl' ;;
    'serve-prefill:--all2all-backend') words='auto naive low_latency high_throughput' ;;
    'serve-prefill:--num-redundant-experts') return ;;
    'serve-prefill:--eplb-step-interval') return ;;
    'serve-prefill:--max-num-seqs') return ;;
    'serve-prefill:--max-num-batched-tokens') return ;;
    'serve-prefill:--kv-cache-memory-bytes') return ;;
    'serve-prefill:--kv-cache-dtype') words='auto f32 bf16 fp8' ;;
    'serve-prefill:--block-size') return ;;
    'serve-prefill:--device') words='auto cpu cuda' ;;
    'serve-prefill:--cpu-path') words='auto avx512 portable' ;;
    'serve-prefill:--threads') return ;;
    'serve-prefill:--gpu-memory-utilization') return ;;
    'serve-prefill:--host') return ;;
    'serve-prefill:--port') return ;;
    'serve-prefill:--ops-port') return ;;
    'serve-prefill:--ops-host') return ;;
    'serve-prefill:--api-key') return ;;
    'serve-prefill:--ssl-certfile') kind='file' ;;
    'serve-prefill:--ssl-keyfile') kind='file' ;;
    'serve-prefill:--shutdown-timeout') return ;;
    'serve-prefill:--stall-timeout') return ;;
    'serve-prefill:--cluster-secret-file') kind='file' ;;
    'serve-prefill:--kv-port') return ;;
    'serve-prefill:--config') kind='file' ;;
    'serve-prefill:--log-format') words='text json' ;;
    'serve-prefill:--log-level') words='debug info warn error' ;;
    'serve-router:--prefill') return ;;
    'serve-router:--decode') return ;;
    'serve-router:--workers-file') kind='file' ;;
    'serve-router:--policy') return ;;
    'serve-router:--prefill-policy') return ;;
    'serve-router:--decode-policy') return ;;
    'serve-router:--prefix-cache-load-tolerance') return ;;
    'serve-router:--max-queue-size') return ;;
    'serve-router:--queue-timeout') return ;;
    'serve-router:--max-requests-per-worker') return ;;
    'serve-router:--retry-max-retries') return ;;
    'serve-router:--cb-failure-threshold') return ;;
    'serve-router:--cb-success-threshold') return ;;
    'serve-router:--cb-timeout') return ;;
    'serve-router:--host') return ;;
    'serve-router:--port') return ;;
    'serve-router:--ops-port') return ;;
    'serve-router:--ops-host') return ;;
    'serve-router:--api-key') return ;;
    'serve-router:--ssl-certfile') kind='file' ;;
    'serve-router:--ssl-keyfile') kind='file' ;;
    'serve-router:--shutdown-timeout') return ;;
    'serve-router:--cluster-secret-file') kind='file' ;;
    'serve-router:--config') kind='file' ;;
    'serve-router:--log-format') words='text json' ;;
    'serve-router:--log-level') words='debug info warn error' ;;
    'inspect:--model') kind='folder' ;;
    'inspect:--max-model-len') return ;;
    'inspect:--tensor-parallel-size'|'inspect:--tp-size') return ;;
    'inspect:--data-parallel-size'|'inspect:--dp-size') return ;;
    'inspect:--expert-parallel-size'|'inspect:--ep-size') return ;;
    'inspect:--num-redundant-experts') return ;;
    'inspect:--gpu-memory-utilization') return ;;
    'inspect:--gpu-memory-gb') return ;;
    'inspect:--shape') return ;;
    'inspect:--config') kind='file' ;;
    'inspect:--log-format') words='text json' ;;
    'inspect:--log-level') words='debug info warn error' ;;
    'bench engine:--model') kind='folder' ;;
    'bench engine:--max-model-len') return ;;
    'bench engine:--tensor-parallel-size'|'bench engine:--tp-size') return ;;
    'bench engine:--data-parallel-size'|'bench engine:--dp-size') return ;;
    'bench engine:--expert-parallel-size'|'bench engine:--ep-size') return ;;
    'bench engine:--devices') return ;;
    'bench engine:--collectives') words='auto p2p nccl' ;;
    'bench engine:--all2all-backend') words='auto naive low_latency high_throughput' ;;
    'bench engine:--num-redundant-experts') return ;;
    'bench engine:--eplb-step-interval') return ;;
    'bench engine:--max-num-seqs') return ;;
    'bench engine:--max-num-batched-tokens') return ;;
    'bench engine:--kv-cache-memory-bytes') return ;;
    'bench engine:--kv-cache-dtype') words='auto f32 bf16 fp8' ;;
    'bench engine:--block-size') return ;;
    'bench engine:--device') words='auto cpu cuda' ;;
    'bench engine:--cpu-path') words='auto avx512 portable' ;;
    'bench engine:--threads') return ;;
    'bench engine:--gpu-memory-utilization') return ;;
    'bench engine:--shape') return ;;
    'bench engine:--input-len') return ;;
    'bench engine:--output-len') return ;;
    'bench engine:--concurrency') return ;;
    'bench engine:--num-requests') return ;;
    'bench engine:--seed') return ;;
    'bench engine:--config') kind='file' ;;
    'bench engine:--log-format') words='text json' ;;
    'bench engine:--log-level') words='debug info warn error' ;;
    'bench kernels:--device') words='auto cpu cuda' ;;
    'bench kernels:--threads') return ;;
    'bench kernels:--filter') return ;;
    'bench kernels:--shape') return ;;
    'bench kernels:--config') kind='file' ;;
    'bench kernels:--log-format') words='text json' ;;
    'bench kernels:--log-level') words='debug info warn error' ;;
    'bench comm:--devices') return ;;
    'bench comm:--all2all-backend') words='auto naive low_latency high_throughput' ;;
    'bench comm:--device') words='auto cpu cuda' ;;
    'bench comm:--threads') return ;;
    'bench comm:--ep-size'|'bench comm:--expert-parallel-size') return ;;
    'bench comm:--tokens') return ;;
    'bench comm:--hidden-size') return ;;
    'bench comm:--top-k') return ;;
    'bench comm:--num-experts') return ;;
    'bench comm:--dtype') words='auto fp8 bf16 f32' ;;
    'bench comm:--collectives') words='auto p2p nccl both' ;;
    'bench comm:--iterations') return ;;
    'bench comm:--pause-ms') return ;;
    'bench comm:--config') kind='file' ;;
    'bench comm:--log-format') words='text json' ;;
    'bench comm:--log-level') words='debug info warn error' ;;
    'bench serve:--api-key') return ;;
    'bench serve:--input-len') return ;;
    'bench serve:--output-len') return ;;
    'bench serve:--concurrency') return ;;
    'bench serve:--num-requests') return ;;
    'bench serve:--seed') return ;;
    'bench serve:--request-rate') return ;;
    'bench serve:--duration') return ;;
    'bench serve:--shared-prefix-len') return ;;
    'bench serve:--vocab-size') return ;;
    'bench serve:--prompts') kind='file' ;;
    'bench serve:--num-warmup') return ;;
    'bench serve:--html') kind='file' ;;
    'bench serve:--url') return ;;
    'bench serve:--model') return ;;
    'bench serve:--timeout') return ;;
    'bench serve:--config') kind='file' ;;
    'bench serve:--log-format') words='text json' ;;
    'bench serve:--log-level') words='debug info warn error' ;;
    'debug-request:--api-key') return ;;
    'debug-request:--url') return ;;
    'debug-request:--model') return ;;
    'debug-request:--timeout') return ;;
    'debug-request:--message') return ;;
    'debug-request:--max-tokens') return ;;
    'debug-request:--body') return ;;
    'debug-request:--path') return ;;
    'debug-request:--method') return ;;
    'debug-request:--header') return ;;
    'debug-request:--config') kind='file' ;;
    'debug-request:--log-format') words='text json' ;;
    'debug-request:--log-level') words='debug info warn error' ;;
    'deploy up:--file') kind='file' ;;
    'deploy up:--template') words='ep-pd' ;;
    'deploy up:--model') kind='folder' ;;
    'deploy up:--prefill') return ;;
    'deploy up:--decode') return ;;
    'deploy up:--host') return ;;
    'deploy up:--port') return ;;
    'deploy up:--ready-timeout') return ;;
    'deploy up:--unhealthy-timeout') return ;;
    'deploy up:--name') return ;;
    'deploy status:--name') return ;;
    'deploy logs:--name') return ;;
    'deploy logs:--instance') return ;;
    'deploy logs:--since') return ;;
    'deploy logs:--grep') return ;;
    'deploy logs:--tail') return ;;
    'deploy down:--timeout') return ;;
    'deploy down:--name') return ;;
  esac
  # A flag, or the positional argument.
  if [[ -z $words$kind ]]; then
    case "$command" in
      'serve-decode')
        words='--model --served-model-name --max-model-len --skip-tokenizer-init --reasoning-parser --tool-call-parser --tensor-parallel-size --tp-size --data-parallel-size --dp-size --expert-parallel-size --ep-size --devices --collectives --all2all-backend --num-redundant-experts --enable-eplb --eplb-step-interval --enable-dbo --max-num-seqs --max-num-batched-tokens --kv-cache-memory-bytes --kv-cache-dtype --block-size --enable-prefix-caching --no-enable-prefix-caching --device --cpu-path --threads --deterministic --precise --portable-kernels --overlap-schedule --no-overlap-schedule --gpu-memory-utilization --shape --host --port --ops-port --ops-host --metrics-without-key --allow-debug-header --no-allow-debug-header --api-key --ssl-certfile --ssl-keyfile --shutdown-timeout --stall-timeout --cluster-secret-file --local-prefill-tokens --config --log-format --log-level --no-color --help --version -h'
        [[ $cur == -* ]] || kind='folder'
        ;;
      'serve-prefill')
        words='--model --served-model-name --max-model-len --skip-tokenizer-init --tensor-parallel-size --tp-size --data-parallel-size --dp-size --expert-parallel-size --ep-size --devices --collectives --all2all-backend --num-redundant-experts --enable-eplb --eplb-step-interval --enable-dbo --max-num-seqs --max-num-batched-tokens --kv-cache-memory-bytes --kv-cache-dtype --block-size --enable-prefix-caching --no-enable-prefix-caching --device --cpu-path --threads --deterministic --precise --portable-kernels --overlap-schedule --no-overlap-schedule --gpu-memory-utilization --host --port --ops-port --ops-host --metrics-without-key --allow-debug-header --no-allow-debug-header --api-key --ssl-certfile --ssl-keyfile --shutdown-timeout --stall-timeout --cluster-secret-file --kv-port --config --log-format --log-level --no-color --help --version -h'
        [[ $cur == -* ]] || kind='folder'
        ;;
      'serve-router')
        words='--prefill --decode --workers-file --policy --prefill-policy --decode-policy --prefix-cache-load-tolerance --max-queue-size --queue-timeout --max-requests-per-worker --retry-max-retries --cb-failure-threshold --cb-success-threshold --cb-timeout --host --port --ops-port --ops-host --metrics-without-key --allow-debug-header --no-allow-debug-header --api-key --ssl-certfile --ssl-keyfile --shutdown-timeout --cluster-secret-file --config --log-format --log-level --no-color --help --version -h'
        ;;
      'inspect')
        words='--model --max-model-len --tensor-parallel-size --tp-size --data-parallel-size --dp-size --expert-parallel-size --ep-size --num-redundant-experts --gpu-memory-utilization --gpu-memory-gb --shape --json --config --log-format --log-level --no-color --help --version -h'
        [[ $cur == -* ]] || kind='folder'
        ;;
      'bench engine')
        words='--model --max-model-len --tensor-parallel-size --tp-size --data-parallel-size --dp-size --expert-parallel-size --ep-size --devices --collectives --all2all-backend --num-redundant-experts --enable-eplb --eplb-step-interval --enable-dbo --max-num-seqs --max-num-batched-tokens --kv-cache-memory-bytes --kv-cache-dtype --block-size --device --cpu-path --threads --deterministic --precise --portable-kernels --overlap-schedule --no-overlap-schedule --gpu-memory-utilization --shape --input-len --output-len --concurrency --num-requests --seed --json --config --log-format --log-level --no-color --help --version -h'
        [[ $cur == -* ]] || kind='folder'
        ;;
      'bench kernels')
        words='--device --threads --filter --shape --json --config --log-format --log-level --no-color --help --version -h'
        ;;
      'bench comm')
        words='--devices --all2all-backend --device --threads --ep-size --expert-parallel-size --tokens --hidden-size --top-k --num-experts --dtype --collectives --iterations --pause-ms --json --config --log-format --log-level --no-color --help --version -h'
        ;;
      'bench serve')
        words='--api-key --input-len --output-len --concurrency --num-requests --seed --request-rate --duration --shared-prefix-len --vocab-size --prompts --num-warmup --html --allow-remote --url --model --timeout --insecure --json --config --log-format --log-level --no-color --help --version -h'
        ;;
      'debug-request')
        words='--api-key --url --model --timeout --insecure --message --max-tokens --stream --no-stream --body --path --method --header --json --config --log-format --log-level --no-color --help --version -h'
        ;;
      'deploy up')
        words='--file --template --model --prefill --decode --host --port --ready-timeout --unhealthy-timeout --dry-run --yes --foreground --name --json --help --version -y -h'
        [[ $cur == -* ]] || kind='folder'
        ;;
      'deploy status')
        words='--name --json --help --version -h'
        ;;
      'deploy logs')
        words='--name --instance --since --grep --tail --follow --previous --help --version -f -h'
        [[ $cur == -* ]] || kind='folder'
        ;;
      'deploy down')
        words='--timeout --name --help --version -h'
        ;;
    esac
  fi
  case "$kind" in
    file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
    folder) mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur") ;;
  esac
  [[ -z $kind ]] || compopt -o filenames 2>/dev/null
}
complete -F _moectl moectl
