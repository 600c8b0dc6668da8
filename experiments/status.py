"""Show what is done, running, failed or missing, and what to run again.

Reads a label folder, also while processes write into it, with its sampled answers; the folder of a run or of
a sweep; or a folder of runs. Nothing is written. The exit status is 0 if everything is complete, 1 if not;
`print_json=true` prints one JSON object with every file and job.

Examples:
    tokenscale status                                     # labels of tiny_m3 on `scenes`
    tokenscale status task=textvqa backbone=m3_llava_7b   # the labels that `label` makes with these options
    tokenscale status folder=outputs/multirun             # the jobs of all sweeps
"""

from pathlib import Path

from omegaconf import DictConfig

from experiments.command_line.entry_point import entry_point


@entry_point("status")
def main(config: DictConfig) -> None:
    import json

    from experiments.labels.status import is_label_folder, read_label_status
    from experiments.reporting.status import format_jobs, format_work, to_json
    from experiments.results.jobs import list_jobs

    folder = Path(config.folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder={folder}: there is no such folder, give one of labels, runs or a sweep"
        )
    work = read_label_status(folder, verify=config.verify) if is_label_folder(folder) else []
    jobs = [] if work else list_jobs(folder)
    if not work and not jobs:
        raise ValueError(
            f"folder={folder}: it holds no labels and no runs, give the folder of a task's labels"
        )
    is_complete = all(part.is_complete for part in work) and all(job.state == "done" for job in jobs)
    if config.print_json:
        print(json.dumps(to_json(work, jobs, is_complete=is_complete)))
    else:
        print("\n\n".join([format_work(status) for status in work] or [format_jobs(jobs)]))
    if not is_complete:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
