/** The demonstration's display: one line per step, live while it runs, then its verdict, time and detail. */

export interface StepResult {
  readonly name: string;
  readonly ok: boolean;
  readonly ms: number;
  readonly detail: string;
}

export interface Display {
  print(text: string): void;
  begin(title: string): void;
  /** What the running step is doing right now. */
  live(text: string): void;
  end(result: StepResult, title: string): void;
}

const FRAMES = '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏';
const FRAME_MS = 100;
/** Without a terminal nothing moves, so a long step says what it is at from time to time. */
const PLAIN_INTERVAL_MS = 5000;

export const seconds = (ms: number): string => `${(ms / 1000).toFixed(1)} s`;

export function createDisplay(stream: NodeJS.WriteStream): Display {
  const live = stream.isTTY === true;
  const paint = (code: string, text: string) =>
    live && process.env['NO_COLOR'] === undefined ? `\x1b[${code}m${text}\x1b[0m` : text;
  let timer: NodeJS.Timeout | undefined;
  let current = { title: '', text: '', startedAt: 0, frame: 0 };

  const draw = () => {
    const frame = FRAMES[current.frame++ % FRAMES.length];
    const line = `${frame} ${current.title}  ${current.text}`.slice(0, (stream.columns ?? 100) - 10);
    stream.write(`\r\x1b[K${line}  ${seconds(performance.now() - current.startedAt)}`);
  };
  const tell = () =>
    stream.write(
      `  … ${current.title}: ${current.text || 'working'} (${seconds(performance.now() - current.startedAt)})\n`,
    );

  return {
    print: (text) => stream.write(`${text}\n`),
    begin(title) {
      current = { title, text: '', startedAt: performance.now(), frame: 0 };
      timer = setInterval(live ? draw : tell, live ? FRAME_MS : PLAIN_INTERVAL_MS);
    },
    live(text) {
      current.text = text;
    },
    end(result, title) {
      clearInterval(timer);
      const mark = result.ok ? paint('32', '✔') : paint('31', '✖');
      stream.write(
        `${live ? '\r\x1b[K' : ''}${mark} ${title} ${paint('2', `(${seconds(result.ms)})`)}\n    ${result.detail.replaceAll('\n', '\n    ')}\n`,
      );
    },
  };
}
