"""What is shipped for real clusters says what their schemas ask for, and the Slurm script's own steps run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """A JSON schema of an object with these keys and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, COUNT, TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
RESOURCES = closed({"requests": TEXTS, "limits": TEXTS}, "requests", "limits")
CONTAINER = closed(
    {
        "name": TEXT,
        "image": TEXT,
        "env": {"type": "array", "items": closed({"name": TEXT, "value": TEXT}, "name", "value")},
        "resources": RESOURCES,
        "volumeMounts": {"type": "array", "items": closed({"name": TEXT, "mountPath": TEXT}, "name", "mountPath")},
    },
    *("name", "image", "resources", "volumeMounts"),
)
VOLUME = closed(
    {
        "name": TEXT,
        "persistentVolumeClaim": closed({"claimName": TEXT, "readOnly": TRUTH}, "claimName"),
        "emptyDir": closed({"medium": {"enum": ["", "Memory"]}, "sizeLimit": TEXT}),
    },
    "name",
)
USER = closed({"runAsNonRoot": TRUTH, "runAsUser": COUNT, "runAsGroup": COUNT, "fsGroup": COUNT})
POD = closed(
    {
        "spec": closed(
            {
                "automountServiceAccountToken": TRUTH,
                "securityContext": USER,
                "containers": {"type": "array", "items": CONTAINER, "minItems": 1},
                "volumes": {"type": "array", "items": VOLUME},
            },
            "containers",
        )
    },
    "spec",
)
HEAD = closed({"serviceType": TEXT, "rayStartParams": TEXTS, "template": POD}, "rayStartParams", "template")
WORKERS = closed(
    {
        "groupName": {"type": "string", "pattern": "^[a-z0-9-]+$"},
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": TEXTS,
        "template": POD,
    },
    *("groupName", "template"),
)
RAY_CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["disabled", "token"]}}, "mode"),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": {"type": "array", "items": WORKERS},
    },
    "headGroupSpec",
)
RAY_JOB = closed(  # the fields of ray.io/v1 that we use, with their types
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": closed({"name": {"type": "string", "maxLength": 47}}, "name"),
        "spec": closed(
            {
                "entrypoint": TEXT,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                "backoffLimit": COUNT,
                "shutdownAfterJobFinishes": TRUTH,
                "ttlSecondsAfterFinished": COUNT,
                "activeDeadlineSeconds": COUNT,
                "rayClusterSpec": RAY_CLUSTER,
            },
            *("entrypoint", "rayClusterSpec"),
        ),
    },
    *("apiVersion", "kind", "metadata", "spec"),
)


def test_the_rayjob_has_the_fields_of_its_api() -> None:
    job = load(DEPLOY / "kuberay/rayjob.yaml")
    jsonschema.validate(job, RAY_JOB)
    with pytest.raises(jsonschema.ValidationError, match="entryPoint"):
        jsonschema.validate({**job, "spec": {**job["spec"], "entryPoint": ""}}, RAY_JOB)


def test_every_pod_of_the_rayjob_has_the_token_the_version_and_the_shared_folder() -> None:
    job = load(DEPLOY / "kuberay/rayjob.yaml")["spec"]
    nodes = job["rayClusterSpec"]
    assert nodes["authOptions"] == {"mode": "token"}
    assert f"ray=={nodes['rayVersion']}\n" in re.sub(r"\[[^]]*\]", "", (ROOT / "requirements.lock").read_text())
    pods = [group["template"]["spec"] for group in (nodes["headGroupSpec"], *nodes["workerGroupSpecs"])]
    for pod in pods:
        assert pod["volumes"] == pods[0]["volumes"]
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
        assert f"cd {mounts['lab']} " in job["entrypoint"]


def test_the_launchers_file_passes_rays_own_checks() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(DEPLOY / "cluster/cluster.yaml")
    whole = prepare_config(config)
    validate_config(whole)
    assert whole["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**whole, "cluster_nam": "x"})


def test_every_start_of_ray_has_the_token_and_none_opens_the_dashboard() -> None:
    config = load(DEPLOY / "cluster/cluster.yaml")
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in commands)
    assert [("--dashboard-host=127.0.0.1" in start, "--head" in start) for start in starts] == [
        (True, True),
        (False, False),
    ]


STUBS = {  # of Slurm: two nodes, both this machine
    "scontrol": "#!/bin/bash\nprintf 'node1\\nnode2\\n'\n",
    "hostname": "#!/bin/bash\necho 127.0.0.1 10.9.9.9\n",
    "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do [ "$1" = -w ] && shift; shift; done\nexec "$@"\n',
}
ASK = """
import json, os, ray
ray.init(log_to_driver=False, logging_level="error")
token = os.environ["RAY_AUTH_TOKEN_PATH"]
modes = [oct(os.stat(path).st_mode & 0o777) for path in (token, os.path.dirname(token))]
print(json.dumps({"nodes": len(ray.nodes()), "CPUs": ray.cluster_resources()["CPU"], "modes": modes}))
"""


@pytest.mark.slow
def test_the_slurm_script_starts_a_cluster_with_a_private_token_and_leaves_nothing(tmp_path: Path) -> None:
    script = DEPLOY / "slurm/dart.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    for name, text in STUBS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "node[1-2]"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    command = ["bash", script, "python", "-c", ASK]
    job = subprocess.Popen(
        command, env={**kept, **slurm, "PATH": path, "HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True
    )
    seen: set[psutil.Process] = set()
    while job.poll() is None:
        seen |= set(psutil.Process(job.pid).children(recursive=True))
        psutil.wait_procs([], timeout=0.2)
    assert job.stdout is not None
    answer = json.loads(job.stdout.read().splitlines()[-1])
    assert (job.returncode, answer) == (0, {"nodes": 2, "CPUs": 2, "modes": ["0o600", "0o700"]})
    assert any("raylet" in process.name() for process in seen if process.is_running()) is False
    assert list((tmp_path / "runs").iterdir()) == []
