/** Runs async sections one after another, in the order asked for; a failing one does not stop the next. */
export function serializer(): <T>(section: () => Promise<T>) => Promise<T> {
  let last: Promise<unknown> = Promise.resolve();
  return (section) => {
    const result = last.then(section, section);
    last = result.catch(() => undefined);
    return result;
  };
}
